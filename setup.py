"""Installs `safety_modules`, `data_recipes` and the command `safety-modules`; `train` and `scripts` need a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "accelerate>=1.10",
    "bitsandbytes>=0.46; sys_platform != 'darwin'",
    "deepspeed>=0.17; sys_platform == 'linux'",
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
    packages=find_packages(include=["safety_modules", "safety_modules.*", "data_recipes", "data_recipes.*"]),
    package_data={
        "safety_modules": ["*.yaml", "**/*.jinja", "**/*.css", "**/*.js"],
        "data_recipes": ["texts/*.yaml", "riskworld/base/*"],
    },
    entry_points={"console_scripts": ["safety-modules = safety_modules.cli.main:main"]},
    install_requires=[
        "datasets>=4.0",
        "huggingface-hub>=1.0",
        "imagehash>=4.3",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "numpy>=2.0",
        "peft>=0.17",
        "pillow>=10.3",
        "pyarrow>=17",
        "pyyaml>=6",
        "regex>=2024.5.15",
        "rich>=13",
        "safetensors>=0.5",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "tokenizers>=0.22",
        "torch>=2.6,<3",
        "tqdm>=4.66",
        "transformers>=5.17,<6",
    ],
    extras_require={
        "train": TRAIN,
        "judge": JUDGE,
        "liger": ["liger-kernel>=0.5; sys_platform == 'linux'"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
        "dev": [
            *TRAIN,
            *JUDGE,
            "hypothesis>=6.100",
            "mypy>=1.17",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "types-PyYAML>=6",
        ],
    },
)
