"""What is declared in several places says the same in each: Python versions, hooks, lint and continuous integration."""

import re

import yaml
from helpers.house import ROOT


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def lint_commands():
    """What `make lint` runs, without its folders and options: {"ruff check", ...}."""
    recipe = re.search(r"^lint:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    return {" ".join(re.findall(r"(?<![\w-])[a-z]+", part.split("/")[1])) for part in recipe.split("&&")}


def test_pre_commit_has_the_hooks_of_make_lint():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    commands = {" ".join(re.findall(r"(?<![\w-])[a-z]+", hook["entry"].split("/")[-1])) for hook in hooks}
    assert commands == lint_commands() == {"ruff check", "ruff format", "mypy"}
    assert {hook["language"] for hook in hooks} == {"system"}, "a hook would need the network"


def test_continuous_integration_covers_the_supported_pythons():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    setup = (ROOT / "setup.py").read_text()
    low, high = (int(minor) for minor in re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup).groups())
    versions = [f"3.{minor}" for minor in range(low, high)]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == versions
    assert set(jobs["macos"]["strategy"]["matrix"]["python"]) <= set(versions)
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"linux": ["sh .ci/run"], "macos": ["make test", "make lint"]}


def test_the_citation_has_the_version_of_the_package():
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())[1]
    assert read("CITATION.cff")["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "safety_modules" / "__init__.py").read_text()
