"""What a fresh clone relies on: lock files, Makefile, container files, and what documents say of them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from service.metrics import NAMES
from service.settings import Settings, settings_table, variable_name

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[0-9][0-9a-z.]*)( ; .+)?$")


WITH_TORCH_FOR_CUDA = {"triton"}  # a dependency of torch's CUDA builds; without it torch computes instead


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(lock: Path) -> list[str]:
    """The pinned lines of a lock file, without comments and the reference to the other file."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def names(lock: Path) -> set[str]:
    """The packages that a lock file pins, in canonical spelling; other lines have their own test."""
    return {match["name"] for line in pins(lock) if (match := PIN.match(line))}


def declared(group: str | None) -> set[str]:
    """The packages that pyproject.toml asks for, of one extra or of the project itself."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = project["dependencies"] if group is None else project["optional-dependencies"][group]
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in wanted}


def imported(folder: str) -> set[str]:
    """The packages, by the name they are installed under, that the modules of a folder import."""
    modules = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    ours = {"service", "model_store", "tests", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}
    foreign = modules - set(sys.stdlib_module_names) - ours
    return {known.get(module, [module])[0].lower().replace("_", "-") for module in foreign}


def make_targets() -> set[str]:
    """Every target of the Makefile that has a plain name."""
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


def compose_services() -> dict[str, dict[str, object]]:
    services: dict[str, dict[str, object]] = yaml.safe_load(read("docker-compose.yml"))["services"]
    return services


@pytest.mark.parametrize("lock", [RUNTIME_LOCK, DEV_LOCK], ids=lambda lock: lock.name)
def test_every_line_of_a_lock_file_is_one_exact_public_version(lock: Path) -> None:
    assert [line for line in pins(lock) if not PIN.match(line)] == []  # no local label, hash, range or option


@pytest.mark.parametrize("lock", [RUNTIME_LOCK, DEV_LOCK], ids=lambda lock: lock.name)
def test_a_lock_file_names_no_address(lock: Path) -> None:
    assert not re.search(r"://|index-url|find-links|@", lock.read_text(encoding="utf-8"))


def test_the_lock_leaves_the_cuda_libraries_to_torch() -> None:
    locked = names(RUNTIME_LOCK) | names(DEV_LOCK)
    assert not {name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))}


def test_every_runtime_dependency_is_locked() -> None:
    assert declared(None) <= names(RUNTIME_LOCK)


@pytest.mark.parametrize("extra", ["train", "dev"])
def test_every_dependency_of_an_extra_is_locked(extra: str) -> None:
    assert declared(extra) <= names(RUNTIME_LOCK) | names(DEV_LOCK)


def test_serving_installs_no_training_or_test_package() -> None:
    assert not names(RUNTIME_LOCK) & (declared("train") | declared("dev")) - {"pyyaml"}


def test_no_package_is_pinned_in_both_lock_files() -> None:
    assert not names(RUNTIME_LOCK) & names(DEV_LOCK)


def test_everything_the_service_imports_is_a_runtime_dependency() -> None:
    optional = {"matplotlib"}  # `textgen bench --plot` says so when it is missing
    assert imported("service") - declared(None) - optional - WITH_TORCH_FOR_CUDA == set()


def test_everything_the_store_imports_is_a_dependency_or_in_the_train_extra() -> None:
    assert imported("model_store") - declared(None) - declared("train") == set()


def test_everything_the_tests_import_is_a_dependency_or_in_an_extra() -> None:
    extras = declared("train") | declared("dev")
    assert imported("tests") - declared(None) - extras - WITH_TORCH_FOR_CUDA == set()


def test_every_make_target_that_a_document_names_exists() -> None:
    documents = ["README.md", "AGENTS.md", "CHANGELOG.md", "docs/operations.md", ".ci/run"]
    text = "\n".join(read(name) for name in documents)
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= make_targets()


def test_the_readme_shows_the_settings_as_the_code_prints_them() -> None:
    assert settings_table() in read("README.md")


def test_every_setting_that_a_document_or_the_container_names_exists() -> None:
    files = ["README.md", "docs/operations.md", "docs/architecture.md", "Dockerfile", "docker-compose.yml"]
    named = set(re.findall(r"TEXTGEN_[A-Z0-9_]*[A-Z0-9]", "\n".join(read(name) for name in files)))
    assert named <= {variable_name(field) for field in Settings.model_fields}


def test_the_image_sets_the_defaults_that_the_settings_leave_to_it() -> None:
    assert {"TEXTGEN_HOST=0.0.0.0", "TEXTGEN_STORE=/models"} <= set(read("Dockerfile").split())


def test_the_image_starts_the_service_without_a_shell() -> None:
    assert 'ENTRYPOINT ["textgen"]' in read("Dockerfile")  # a shell would keep SIGTERM for itself


def test_compose_gives_the_service_longer_to_stop_than_it_takes_to_drain() -> None:
    grace = str(compose_services()["textgen"]["stop_grace_period"])
    assert float(grace.removesuffix("s")) > Settings.model_fields["drain_s"].default


@pytest.mark.parametrize("service", ["textgen", "textgen-gpu"])
def test_compose_runs_the_service_read_only_and_without_capabilities(service: str) -> None:
    entry = compose_services()[service]
    assert (entry["read_only"], entry["cap_drop"]) == (True, ["ALL"])


def test_compose_starts_the_gpu_variant_only_on_request() -> None:
    assert [name for name, entry in compose_services().items() if entry.get("profiles") == ["gpu"]] == [
        "textgen-gpu"
    ]


def test_prometheus_scrapes_a_host_that_both_variants_answer_to() -> None:
    target = yaml.safe_load(read("deploy/prometheus.yml"))["scrape_configs"][0]["static_configs"][0][
        "targets"
    ][0]
    variants = [compose_services()[name] for name in ("textgen", "textgen-gpu")]
    aliases = [entry["networks"]["default"]["aliases"] for entry in variants]  # type: ignore[index]
    assert aliases == [[target.removesuffix(":8000")]] * 2


@pytest.mark.parametrize("file", ["deploy/alerts.yml", "docs/operations.md"])
def test_every_metric_that_an_operator_reads_about_is_declared(file: str) -> None:
    named = set(re.findall(r"textgen_[a-z_]*[a-z]", read(file))) - {"textgen_keys"}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= set(NAMES)


def test_every_alert_is_explained_in_the_operations_page() -> None:
    rules = yaml.safe_load(read("deploy/alerts.yml"))["groups"][0]["rules"]
    page = read("docs/operations.md")
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []
