"""Config files: read, or refused in words that name the file and the line or field."""

import inspect
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ltm_det.basics.arguments import nearest
from ltm_det.basics.errors import InputError, frames_of

SUFFIXES = (".py", ".json", ".yaml", ".yml")

# What of a config mmengine's runner, mmdet's tools and ours read.
READ = (
    *inspect.signature(Runner.__init__).parameters,
    "custom_imports",
    "vis_backends",
    "model_wrapper_cfg",
    "find_unused_parameters",
    "tta_model",
    "tta_pipeline",
    "runner_type",
    "strategy",
    "compile",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
)


def read_config(path: str) -> Config:
    """The config of a file that is there.

    Raises:
        InputError: It is no config, inherits from itself, or an error is raised in it.
        FileNotFoundError: It inherits from what is not there.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path} is no config: its name must end in one of {SUFFIXES}")
    try:
        Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no config, but cannot be read as text: {error}") from error
    if circle := circle_of(Path(path), ()):
        names = " -> ".join(file.name for file in circle)
        raise InputError(f"{path} inherits from itself, {names}: change a _base_ of these")
    try:
        return Config.fromfile(path)
    except FileNotFoundError:  # what it inherits from
        raise
    except SyntaxError as error:
        told = " ".join(str(error).split())
        raise InputError(f"{file_of(error, path)}: syntax error: {told}") from error
    except Exception as error:  # whatever a config's own code raises
        told = " ".join(str(error).split())
        raise InputError(f"{place_in(error, path)}: {type(error).__name__}: {told}") from error


def circle_of(file: Path, before: tuple[Path, ...]) -> tuple[Path, ...]:
    """Files that name each other as ``_base_``, or none."""
    file = file.resolve()
    if file in before:
        return (*before[before.index(file) :], file)
    try:
        bases = Config._get_base_files(str(file))
    except Exception:  # reading it tells what is wrong
        return ()
    own = (file.parent / base for base in bases if "::" not in str(base))
    return next(filter(None, (circle_of(base, (*before, file)) for base in own)), ())


def file_of(error: BaseException, path: str) -> str:
    """The file in which an error came about: the config, or one that it inherits from."""
    found = path
    for frame in frames_of(error):
        if frame.f_code.co_name == "_file2dict":
            found = str(frame.f_locals.get("filename", found))
    return found


def place_in(error: Exception, path: str) -> str:
    """That file, and its line, where that is known."""
    file = file_of(error, path)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def entries(config: Any) -> Iterator[tuple[str, Any]]:
    """All values of a config, and the paths to them, the outer ones first; variables of its file,
    which no run reads, after what a run reads."""
    todo: list[tuple[str, Any]] = [("", config)]
    while todo:
        path, value = todo.pop(0)
        yield path, value
        items: Any = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        if not path:
            items = sorted(items, key=lambda item: item[0] not in READ)
        todo += [(f"{path}.{key}" if path else str(key), below) for key, below in items]


def override(cfg: Config, options: Mapping[str, Any]) -> None:
    """Merges ``--cfg-options`` into a config.

    Raises:
        InputError: An option names what cannot be there.
    """
    for key, value in options.items():
        check_read(cfg, key)
        try:
            cfg.merge_from_dict({key: as_before(cfg, key, value)})
        except Exception as error:  # mmengine raises what comes of it
            raise InputError(f"--cfg-options {key}={value!r}: {reason(cfg, key, error)}") from error


def check_read(cfg: Config, key: str) -> None:
    """That a run reads what an option sets: a variable of the config's file has done its work.

    Raises:
        InputError: It doesn't.
    """
    root = key.partition(".")[0]
    if root in READ:
        return
    if root not in cfg:
        raise InputError(f"--cfg-options {key}: no run reads {root!r}: {nearest(root, READ)}")
    raise InputError(
        f"--cfg-options {key}: {root} is a variable of the config's file, of which its parts have "
        "been made: name the parts themselves, such as train_dataloader.dataset.data_root"
    )


def as_before(cfg: Config, key: str, value: Any) -> Any:
    """A list as a tuple, where the config has one: some of mmdet's classes take nothing else."""
    part = cfg._cfg_dict
    for name in key.split("."):
        if isinstance(part, (list, tuple)) and name.isdigit() and int(name) < len(part):
            part = part[int(name)]
        elif isinstance(part, Mapping) and name in part:
            part = part[name]
        else:
            return value
    return tuple(value) if isinstance(part, tuple) and isinstance(value, list) else value


def reason(cfg: Config, key: str, error: Exception) -> str:
    """Why a key does not fit: the part of its path that has no such parts."""
    part, path = cfg._cfg_dict, []
    for name in key.split("."):
        if isinstance(part, (list, tuple)):
            if not name.isdigit() or int(name) >= len(part):
                return f"{'.'.join(path)} is a list of {len(part)}: give 0 to {len(part) - 1}"
            part = part[int(name)]
        elif isinstance(part, Mapping):
            if name not in part:
                near = nearest(name, part)
                return f"{'.'.join(path) or 'the config'} has no {name!r}: {near}"
            part = part[name]
        else:
            return f"{'.'.join(path)} is {part!r}, which has no parts"
        path.append(name)
    return " ".join(str(error).split())
