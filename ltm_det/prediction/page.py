"""A local web page: what detectors find on a picture, side by side, and how long it takes.

Gradio makes it. Nothing is loaded from elsewhere, and nothing is reported to anybody.

Shapes: a picture of h x w pixels.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

from ltm_det.deploy import Detections
from ltm_det.prediction.detector import Detector

TITLE = "ltm-det"
NAME = "picture"  # of the function, for gradio_client


class Shown(NamedTuple):
    """What a detector found on a picture."""

    image: np.ndarray  # (h, w, 3), red first, with the objects on it
    found: Detections
    milliseconds: float


def gradio() -> ModuleType:
    """The package, told to report nothing.

    Raises:
        ImportError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"{error}: ltm-det demo needs pip install 'ltm_det[demo]'") from error
    return gradio


def looked_at(
    detectors: Mapping[str, Detector], image: np.ndarray, score: float, rounds: int
) -> dict[str, Shown]:
    """What each detector finds on a picture (h, w, 3) of uint8, red first, by its name.

    The detectors take turns, after a round that does not count; times are medians.

    Args:
        score: Objects below it are not shown.
        rounds: That are timed.
    """
    picture = np.ascontiguousarray(image[..., ::-1])
    times: dict[str, list[float]] = {name: [] for name in detectors}
    found = {}
    for _ in range(rounds + 1):
        for name, detector in detectors.items():
            start = perf_counter()
            found[name] = detector(picture)
            times[name].append(1e3 * (perf_counter() - start))
    shown = {}
    for name, objects in found.items():
        kept = objects.above(score)
        drawn = cv2.cvtColor(kept.drawn(picture), cv2.COLOR_BGR2RGB)
        shown[name] = Shown(drawn, kept, median(times[name][1:]))
    return shown


def told(shown: Mapping[str, Shown]) -> str:
    """Times and numbers of objects, as a table of Markdown; times to that of the first."""
    first = next(iter(shown.values())).milliseconds
    rows = ["| detector | objects | milliseconds | to the first |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {name} | {len(own.found)} | {own.milliseconds:.1f} | {own.milliseconds / first:.2f} |"
        for name, own in shown.items()
    ]
    return "\n".join(rows)


def page(
    detectors: Mapping[str, Detector],
    examples: Sequence[Path] = (),
    score: float = 0.3,
    rounds: int = 3,
) -> Any:
    """The page as Gradio's Blocks.

    Args:
        detectors: By the names that stand over what they find; those with the score 0 show all that
            the page's slider lets through.
        examples: Pictures to pick from.
        score: Where the slider begins.
        rounds: Of which times are the median.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = gradio()

    def look(image: np.ndarray | None, least: float) -> list[Any]:
        if image is None:
            return [*[None] * len(detectors), ""]
        shown = looked_at(detectors, image, least, rounds)
        return [*(own.image for own in shown.values()), told(shown)]

    plain = dict(type="numpy", buttons=["download", "fullscreen"])  # and none that shares
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}\nDrop a picture in, or pick one.")
        with gr.Row():
            given = gr.Image(label="picture", image_mode="RGB", height=320, **plain)
            with gr.Column():
                least = gr.Slider(0, 1, score, step=0.05, label="least score")
                words = gr.Markdown(elem_id="times")
        with gr.Row():
            sides = [
                gr.Image(label=name, interactive=False, elem_id=f"side-{i}", **plain)
                for i, name in enumerate(detectors)
            ]
        if examples:
            gr.Examples([str(file) for file in examples], given, label="pictures to pick")
        options = dict(inputs=[given, least], outputs=[*sides, words], concurrency_limit=1)
        given.change(look, api_name=NAME, **options)
        least.release(look, api_name=False, **options)
    return blocks


def served(blocks: Any, host: str, port: int | None) -> str:
    """Serves a page in the background; its address.

    Args:
        host: That it listens at.
        port: None: the first from 7860 on that is free.

    Raises:
        OSError: The port is taken.
    """
    gr = gradio()
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none of the net's
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**fonts),
    )
    return address
