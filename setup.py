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
        "mmdet==3.3.*",
        "mmengine>=0.10.7,<1",
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
    # One of the first two is needed, and only one: both install the module `mmcv`, so the one
    # would overwrite files of the other.
    extras_require={
        "lite": ["mmcv-lite==2.1.0"],
        "full": ["mmcv==2.1.0"],
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
            *DEPLOY,
            *DOCS,
        ],
    },
)
