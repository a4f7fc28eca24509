"""What a fresh clone relies on: lock files, Makefile, container files, and what documents say of them."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from service.metrics import NAMES
from service.settings import Settings, settings_table
from service.settings_text import variable_name

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
SCALE_LOCK = ROOT / "requirements-scale.lock"
LOCKS = [RUNTIME_LOCK, DEV_LOCK, SCALE_LOCK]
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>(?:[0-9]+!)?[0-9][0-9a-z.]*)( ; .+)?$")


WITH_TORCH_FOR_CUDA = {"triton"}  # a dependency of torch's CUDA builds; without it torch computes instead


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(lock: Path) -> list[str]:
    """The pinned lines of a lock file, without comments and the reference to the other file."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def hashed() -> dict[str, str]:
    """Versions by package of the lock file that has hashes; of several for one package the last."""
    found = re.findall(r"^([a-z0-9-]+)==([0-9a-z.]+)", read("deploy/image.lock"), re.MULTILINE)
    return dict(found)


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
        if "clients" in file.parts:  # they have an environment of their own
            continue
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


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_file_is_one_exact_public_version(lock: Path) -> None:
    assert [line for line in pins(lock) if not PIN.match(line)] == []  # no local label, hash, range or option


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_names_no_address(lock: Path) -> None:
    assert not re.search(r"://|index-url|find-links|@", lock.read_text(encoding="utf-8"))


def test_the_lock_leaves_the_cuda_libraries_to_torch() -> None:
    locked = set().union(*map(names, LOCKS)) | set(hashed())
    assert not {name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))}


def test_every_runtime_dependency_is_locked() -> None:
    assert declared(None) <= names(RUNTIME_LOCK)


@pytest.mark.parametrize(
    ("extra", "lock"),
    [("train", DEV_LOCK), ("data", DEV_LOCK), ("dev", DEV_LOCK), ("otel", DEV_LOCK), ("scale", SCALE_LOCK)],
)
def test_every_dependency_of_an_extra_is_locked(extra: str, lock: Path) -> None:
    assert declared(extra) <= names(RUNTIME_LOCK) | names(lock)


def test_serving_installs_no_package_of_an_extra() -> None:
    extras = declared("train") | declared("data") | declared("dev") | declared("otel") | declared("scale")
    assert not names(RUNTIME_LOCK) & extras - {"pyyaml"}


@pytest.mark.parametrize("lock", [DEV_LOCK, SCALE_LOCK], ids=lambda lock: lock.name)
def test_what_serving_needs_is_pinned_once(lock: Path) -> None:
    assert not names(RUNTIME_LOCK) & names(lock)


def test_the_image_has_the_locked_versions_of_everything_and_of_tracing() -> None:
    locked = dict(line.split(" ;")[0].split("==") for line in pins(RUNTIME_LOCK) + pins(DEV_LOCK))
    image = hashed()
    assert {name: locked.get(name) for name in image} == image
    assert (names(RUNTIME_LOCK) | declared("otel")) - image.keys() == {"torch"}


def test_the_image_takes_every_package_by_hash() -> None:
    blocks = re.split(r"\n(?=[a-z])", read("deploy/image.lock"))[1:]
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_everything_the_service_imports_is_a_runtime_dependency() -> None:
    optional = {"matplotlib"} | declared("scale") | declared("otel")  # what is missing is said
    assert imported("service") - declared(None) - optional - WITH_TORCH_FOR_CUDA == set()


def test_everything_the_store_imports_is_a_dependency_or_in_the_extras_for_training() -> None:
    assert imported("model_store") - declared(None) - declared("train") - declared("data") == set()


def test_everything_the_tests_import_is_a_dependency_or_in_an_extra() -> None:
    extras = declared("train") | declared("data") | declared("dev") | declared("scale") | declared("otel")
    assert imported("tests") - declared(None) - extras - WITH_TORCH_FOR_CUDA == set()


def test_the_apis_page_says_which_clients_are_tried() -> None:
    pinned = dict(line.split("==") for line in pins(ROOT / "tests/clients/requirements.txt"))
    node = json.loads(read("tests/clients/package.json"))["dependencies"]
    table = read("docs/api.md").partition("## Works with")[2].partition("\n## ")[0]
    left_out = {
        "pytest",
        "llama-index-core",
        "@ai-sdk/openai-compatible",
        "@langchain/core",
    }  # what others stand on
    versions = {name: version for name, version in {**pinned, **node}.items() if name not in left_out}
    assert {name for name, version in versions.items() if version not in table} == set()


def test_every_make_target_that_a_document_names_exists() -> None:
    documents = ["README.md", "AGENTS.md", "CHANGELOG.md", "docs/operations.md", "docs/scaling.md", ".ci/run"]
    text = "\n".join(read(name) for name in documents)
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= make_targets()


def test_the_document_shows_the_settings_as_the_code_prints_them() -> None:
    assert settings_table() in read("docs/settings.md")


def test_every_setting_that_a_document_or_the_container_names_exists() -> None:
    files = [
        "README.md",
        "docs/operations.md",
        "docs/scaling.md",
        "docs/architecture.md",
        "Dockerfile",
        "docker-compose.yml",
    ]
    named = set(re.findall(r"TEXTGEN_[A-Z0-9_]*[A-Z0-9]", "\n".join(read(name) for name in files)))
    assert named <= {variable_name(field) for field in Settings.model_fields}


def test_the_image_sets_the_defaults_that_the_settings_leave_to_it() -> None:
    assert {"TEXTGEN_HOST=0.0.0.0", "TEXTGEN_STORE=/models"} <= set(read("Dockerfile").split())


def test_every_module_that_the_image_compiles_ahead_exists() -> None:
    listed = re.search(r'python -c "import ([^"]+)"', read("Dockerfile"))
    assert listed is not None
    modules = re.findall(r"[\w.]+", listed[1])
    assert len(modules) > 5 and [name for name in modules if find_spec(name) is None] == []


def test_the_image_starts_the_service_without_a_shell() -> None:
    assert 'ENTRYPOINT ["textgen"]' in read("Dockerfile")  # a shell would keep SIGTERM for itself


def test_compose_gives_the_service_longer_to_stop_than_it_takes_to_drain() -> None:
    grace = re.fullmatch(r"\$\{STOP_GRACE:-(\d+)s\}", str(compose_services()["textgen"]["stop_grace_period"]))
    assert grace is not None and float(grace[1]) > Settings.model_fields["drain_s"].default


def test_compose_runs_the_service_read_only_and_without_capabilities() -> None:
    entry = compose_services()["textgen"]
    assert (entry["read_only"], entry["cap_drop"]) == (True, ["ALL"])


def test_compose_leaves_every_setting_but_the_address_to_the_environment_file() -> None:
    assert set(compose_services()["textgen"]["environment"]) == {"TEXTGEN_HOST", "TEXTGEN_PORT"}  # type: ignore[call-overload]


def test_no_two_services_of_compose_want_one_port() -> None:
    ports = [port for entry in compose_services().values() for port in entry["ports"]]  # type: ignore[attr-defined]
    assert len(ports) == len(set(ports)) == len({re.sub(r".*:-(\d+)\}.*", r"\1", port) for port in ports})


def test_the_gpu_file_of_compose_changes_the_one_service_there_is() -> None:
    assert set(yaml.safe_load(read("deploy/compose.gpu.yml"))["services"]) == {"textgen"}


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml"])
def test_a_health_check_asks_no_proxy(file: str) -> None:
    assert "r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:" in read(file)
    assert "urlopen" not in read(file)


def test_prometheus_scrapes_the_service_by_its_name_in_compose() -> None:
    scraped = yaml.safe_load(read("deploy/prometheus.yml"))["scrape_configs"][0]["static_configs"][0]
    assert scraped["targets"] == ["textgen:8000"] and "textgen" in compose_services()


@pytest.mark.parametrize("file", ["deploy/alerts.yml", "docs/operations.md", "docs/scaling.md"])
def test_every_metric_that_an_operator_reads_about_is_declared(file: str) -> None:
    named = set(re.findall(r"textgen_[a-z_]*[a-z]", read(file))) - {"textgen_keys"}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= set(NAMES)


def test_every_alert_is_explained_in_the_operations_page() -> None:
    rules = yaml.safe_load(read("deploy/alerts.yml"))["groups"][0]["rules"]
    page = read("docs/operations.md")
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []


def test_the_wheel_and_the_image_carry_the_licences_of_the_code_and_of_the_weights() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    manifest = next(ROOT.glob("model_store/models/textgen-7m/*/manifest.json"))
    weights = json.loads(manifest.read_text(encoding="utf-8"))["license"]
    assert project["license"] == f"Apache-2.0 AND {weights}"
    starts = [read(name).split(maxsplit=1)[0] for name in project["license-files"]]
    assert starts == ["Apache", "Attribution-ShareAlike"]
    dockerfile = read("Dockerfile")
    assert f'image.licenses="{project["license"]}"' in dockerfile
    copied = re.findall(r"^COPY ([^-].*) \./$", dockerfile, re.MULTILINE)
    for name in project["license-files"]:
        assert any(name in files.split() for files in copied)
        assert f"!{name}\n" in read(".dockerignore")
