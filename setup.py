"""Package description. The tools' settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: importing the package needs torch, which is not there while building.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "ltm_det" / "__init__.py").read_text(), re.MULTILINE
)[1]

DEPLOY = [
    "onnx>=1.17",
    "onnxscript>=0.5",
    "onnxruntime>=1.20",
    "openvino>=2025.0",
    "nncf>=3.0",  # int8
]

MMDET = ["mmdet==3.3.*", "mmengine>=0.10.7,<1"]

TILES = ["sahi>=0.11.20,<1"]
DEMO = ["gradio>=6,<7"]

DOCS = ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27,<2"]

setup(
    name="ltm_det",
    version=VERSION,
    description="Learnable token merging (LTM) backbones for MMDetection 3.x",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ltm_det", "ltm_det.*"]),
    # Configs where mmengine looks for them, `_base_ = "ltm_det::..."`: links to this repository's.
    package_data={
        "ltm_det": ["py.typed", ".mim/*.yml", ".mim/configs/*.yml", ".mim/configs/**/*.py"]
    },
    entry_points={"console_scripts": ["ltm-det = ltm_det.cli:main"]},
    install_requires=[
        "torch>=2.4,<2.15",
        "torchvision>=0.19,<0.30",
        # mmengine looks up `mmdet::` configs with pkg_resources, gone from setuptools 82 on and
        # announced with a warning at every use from 80.9 on. torch asks for 77.0.3.
        "setuptools>=77.0.3,<80.9",
        "timm>=1.0,<2",
        "safetensors",
        "numpy",
        "pycocotools>=2.0.6",
        "pyyaml",
        "scikit-learn>=1.2",
        "pillow",  # scikit-learn reads its photographs with it
        "matplotlib",
        "tqdm",
    ],
    # mmdet, mmengine and mmcv are of several distributions each, which would overwrite files of one
    # another: none is required, so that what is there stays. Where none is, one of the first three
    # brings all that is needed, the fourth what is needed beside an mmcv.
    extras_require={
        "lite": [*MMDET, "mmcv-lite==2.1.0"],
        "full": [*MMDET, "mmcv==2.1.0"],
        "onedl": ["onedl-mmdetection>=3.5,<4", "onedl-mmengine>=0.10.10,<1", "onedl-mmcv>=2.3,<3"],
        "mmdet": MMDET,
        # pictures in tiles
        "tiles": TILES,
        # the page of ltm-det demo
        "demo": DEMO,
        # to export and to run what was exported
        "deploy": DEPLOY,
        "docs": DOCS,
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff==0.17.*",
            "mypy==2.4.*",
            "peft>=0.15,<1",
            "pre-commit",
            "tensorboard",
            "playwright>=1.50,<2",  # drives the page of ltm-det demo, where there is a Chromium
            *DEPLOY,
            *DOCS,
            *TILES,
            *DEMO,
        ],
    },
)
