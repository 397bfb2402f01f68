"""What is built is what the checkout is: the wheel, the sdist, an editable install, the two names of ``callbacks``, the pinned versions."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it on older versions
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
#: What a build reads; README.md may be missing, the build then only warns.
BUILD_INPUT = ("adapruner", "callbacks", "configs", "pyproject.toml", "LICENSE", "README.md")


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(arguments: list[str], folder: Path, search_path: Path | None = None, timeout: float = 300) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if search_path is not None:
        environment["PYTHONPATH"] = str(search_path)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def copy_source(target: Path) -> Path:
    """The build's input, symlinks kept: the checkout itself stays free of ``build/`` and stale files in it."""
    for name in BUILD_INPUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)
    (target / "configs" / "nested" / "deeper").mkdir(parents=True)
    (target / "configs" / "nested" / "deeper" / "probe.yaml").write_text("seed_everything: 0\n")
    return target


def build(kind: str, source: Path, out: Path) -> Path:
    run_python(["-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)], folder=out)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_every_source_file_exactly_once(source: Path, wheel_names: list[str]) -> None:
    package = source / "adapruner"
    expected = {
        f"adapruner/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*.py")
        if not path.is_relative_to(package / "callbacks")
    } | {f"adapruner/callbacks/{path.name}" for path in (source / "callbacks").glob("*.py")}
    python_files = [name for name in wheel_names if name.endswith(".py")]
    assert "adapruner/callbacks/__init__.py" in expected
    assert sorted(python_files) == sorted(expected)


def test_the_wheel_has_one_top_level_package(wheel_names: list[str]) -> None:
    """No bare ``callbacks`` or ``configs`` in site-packages: such names belong to whoever installs us."""
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"adapruner"}


def test_the_wheel_holds_every_data_file(source: Path, wheel_names: list[str]) -> None:
    configs = source / "configs"
    expected = {f"adapruner/configs/{path.relative_to(configs).as_posix()}" for path in configs.rglob("*.yaml")}
    expected |= {"adapruner/py.typed"}
    templates = source / "adapruner" / "report" / "templates"
    expected |= {f"adapruner/report/templates/{path.name}" for path in templates.iterdir()}
    assert "adapruner/report/templates/report.html" in expected
    assert "adapruner/configs/nested/deeper/probe.yaml" in expected
    assert expected - set(wheel_names) == set()


def test_the_wheel_holds_the_demo_model(source: Path, wheel_names: list[str]) -> None:
    folder = source / "adapruner" / "demo" / "model"
    if not (folder / "model.safetensors").exists():
        pytest.skip("the demo model is not in this checkout: python benchmarks/train_demo.py makes it")
    expected = {f"adapruner/demo/model/{path.name}" for path in folder.iterdir() if path.is_file()}
    assert expected - set(wheel_names) == set()


def test_the_metadata_names_version_command_and_licence(unpacked: Path) -> None:
    (folder,) = unpacked.glob("*.dist-info")
    metadata = Parser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
    version = run_python(["-c", "import adapruner; print(adapruner.__version__)"], ROOT, search_path=ROOT)
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("adapruner", version, "Apache-2.0")
    assert "Apache License" in (folder / "licenses" / "LICENSE").read_text(encoding="utf-8")
    assert "adapruner = adapruner.cli:main" in (folder / "entry_points.txt").read_text(encoding="utf-8")


IMPORT_CALLBACKS = (
    "import importlib.util, pathlib, sys; import adapruner.callbacks as named; "
    "print(pathlib.Path(named.__file__).as_posix(), importlib.util.find_spec('callbacks') is None, 'torch' in sys.modules)"
)


def test_the_unpacked_wheel_imports_from_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    # Without the environment's own installation, whose path file has the checkout and with it the bare name.
    code = f"import sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]; {IMPORT_CALLBACKS}"
    file, no_bare_name, torch_loaded = run_python(["-c", code], tmp_path, search_path=unpacked).split()
    assert file == (unpacked / "adapruner" / "callbacks" / "__init__.py").as_posix()
    assert (no_bare_name, torch_loaded) == ("True", "False")


def test_a_wheel_from_the_sdist_is_the_same(source: Path, wheel_names: list[str], tmp_path: Path) -> None:
    """An archive has files where a checkout has symlinks: what unpacks it need not know of them."""
    with tarfile.open(build("sdist", source, tmp_path)) as tar:
        assert not [member.name for member in tar.getmembers() if member.issym()]
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked_source,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked_source / "adapruner" / "callbacks" / "__init__.py").is_file()
    assert sorted(zipfile.ZipFile(build("wheel", unpacked_source, tmp_path)).namelist()) == sorted(wheel_names)


@pytest.mark.parametrize("first", ["callbacks", "adapruner.callbacks"])
def test_both_names_give_one_module(first: str, tmp_path: Path) -> None:
    """In a checkout, whichever name is imported first; modules below included."""
    shutil.copytree(ROOT / "callbacks", tmp_path / "callbacks", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "callbacks" / "probe.py").write_text("class Probe: ...\n")
    shutil.copytree(ROOT / "adapruner", tmp_path / "adapruner", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "model"))
    code = (
        f"import {first}\n"
        "import callbacks, adapruner.callbacks\n"
        "assert callbacks is adapruner.callbacks, 'two packages'\n"
        "from callbacks.probe import Probe\n"
        "import callbacks.probe, adapruner.callbacks.probe\n"
        "assert callbacks.probe is adapruner.callbacks.probe, 'two modules'\n"
        "assert Probe is adapruner.callbacks.probe.Probe, 'two classes'\n"
        "print(Probe.__module__, callbacks.__name__, callbacks.probe.__spec__.name)"
    )
    printed = run_python(["-c", code], tmp_path, search_path=tmp_path)
    assert printed == "adapruner.callbacks.probe adapruner.callbacks adapruner.callbacks.probe"


def test_a_missing_module_is_reported_under_the_bare_name() -> None:
    code = "import callbacks\ntry:\n    import callbacks.nothing\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert run_python(["-c", code], ROOT, search_path=ROOT) == "callbacks.nothing"


def test_unknown_callback_lists_the_known_ones() -> None:
    import adapruner.callbacks

    with pytest.raises(AttributeError, match=r"no attribute 'Prune'; public names: .*PruningSearchCallback"):
        adapruner.callbacks.Prune  # noqa: B018


def test_every_folder_with_python_files_is_a_package() -> None:
    """Setuptools finds packages by their ``__init__.py``; a folder without one would be missing from the wheel."""
    folders = {path.parent for path in (ROOT / "adapruner").rglob("*.py")}
    assert len(folders) > 15
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_an_editable_install_is_the_checkout_also_for_a_script_beside_it(tmp_path: Path) -> None:
    """By the build backend's own hook, as ``pip install -e`` calls it; its files are put on the search path as pip would.

    A clone is a folder named ``adapruner``: to a script beside it that is a namespace package, unless a later place on the path has more.
    """
    source = copy_source(tmp_path / "beside" / "adapruner")
    code = f"import setuptools.build_meta as backend; print(backend.build_editable({str(tmp_path)!r}))"
    name = run_python(["-c", code], source).splitlines()[-1]
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / name).extractall(site)
    code = f"import site; site.addsitedir({str(site)!r}); {IMPORT_CALLBACKS}"
    loaded = run_python(["-S", "-c", code], tmp_path / "beside").split()  # without the environment's own installation
    # The bare name is there, as it is in the checkout: behind everything else on the path.
    assert loaded == [(source / "adapruner" / "callbacks" / "__init__.py").as_posix(), "False", "False"]


@pytest.mark.parametrize("link", ["callbacks", "configs"])
def test_symlinks_point_to_the_real_folders(link: str) -> None:
    path = ROOT / "adapruner" / link
    if not path.is_symlink():
        pytest.skip("this checkout was made without symlinks")
    assert os.readlink(path) == f"../{link}"
    assert path.is_dir()


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    canonical = pytest.importorskip("packaging.utils").canonicalize_name
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 and re.fullmatch(r"[0-9][0-9a-z.]*", pin[1]) for pin in pinned), "exact versions, no local build tags"
    versions = {canonical(name): version for name, version in pinned}
    project = read_pyproject()["project"]
    extras = project["optional-dependencies"]
    direct = [requirements.Requirement(line) for line in project["dependencies"] + extras["dev"] + extras["docs"]]
    assert len(direct) > 15
    for requirement in direct:
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), str(requirement)


def test_ci_runs_the_documented_commands() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert re.findall(r"^step (.*)$", script.read_text(encoding="utf-8"), re.MULTILINE) == ["make lint", "make docs", "make test"]


def test_make_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = {" ".join(line.split()[:2]) for line in done.stdout.splitlines()}
    assert {"make quickstart", "make test", "make lint", "make format", "make docs", "make clean"} <= listed


def test_ten_lines_on_the_wheel_prune_a_model_object_with_a_list_of_texts(unpacked: Path, tmp_path: Path) -> None:
    script = """
import adapruner
from adapruner.models.loading import load_language_model, load_tokenizer
from adapruner.demo import texts
model, tokenizer = load_language_model("demo"), load_tokenizer("demo")
recipe = adapruner.Recipe({"wanda_sp": 1.0})
result = adapruner.prune(model, tokenizer, calibration=texts()["torch"], budget=0.3, recipe=recipe, progress=False)
print(adapruner.__file__)
print(result.plan.hash, sum(p.numel() for p in result.model.parameters()))
result.save("out")
"""
    (tmp_path / "prune.py").write_text(script.strip() + "\n")
    printed = run_python(["prune.py"], folder=tmp_path, search_path=unpacked).splitlines()
    assert printed[0].startswith(str(unpacked))
    again = run_python(
        ["-c", "import adapruner; m = adapruner.load('out'); print(sum(p.numel() for p in m.parameters()))"], tmp_path, unpacked
    )
    assert printed[1].split()[1] == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prune.py"]
