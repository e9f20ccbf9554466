"""Installs the library `safety_modules`; `train`, `data_recipes` and `scripts` run from a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "accelerate>=1.10",
    "bitsandbytes>=0.46; sys_platform != 'darwin'",
    "datasets>=4.0",
    "deepspeed>=0.17; sys_platform == 'linux'",
    "imagehash>=4.3",
    "jsonargparse>=4.49",
    "matplotlib>=3.8",
    "peft>=0.17",
    "pyarrow>=17",
    "rich>=13",
    "scikit-learn>=1.4",
    "tensorboard>=2.16",
    "wandb>=0.19",
]

JUDGE = ["openai>=2"]

setup(
    name="safety-modules",
    version="0.1.0",
    description="Trainable safety modules for vision language models of the LLaVA family",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["safety_modules", "safety_modules.*"]),
    package_data={"safety_modules": ["taxonomy.yaml", "evaluation/*.jinja"]},
    install_requires=[
        "jinja2>=3.1",
        "numpy>=2.0",
        "pillow>=10.3",
        "pyyaml>=6",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "torch>=2.6,<3",
        "transformers>=5.17,<6",
    ],
    extras_require={
        "train": TRAIN,
        "judge": JUDGE,
        "liger": ["liger-kernel>=0.5; sys_platform == 'linux'"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
        "dev": [*TRAIN, *JUDGE, "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.12"],
    },
)
