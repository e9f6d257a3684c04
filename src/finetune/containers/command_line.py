"""The command line of docker or podman for the container of one command, with all of its permissions.

The container sees this tree and the model cache under their own paths, a scratch folder, and nothing else of the host;
the image is read-only. It runs as the calling user, without capabilities, and without a network unless the command
requires one.
"""

import configparser
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.config.evaluate import ModelSpec, RecordedSpec, ServerSpec
from finetune.config.model import ModelConfig
from finetune.config.params import Config
from finetune.config.scorers import Judge
from finetune.containers.images import Engine
from finetune.errors import ConfigError
from finetune.history.test_set_uses import beside_git, owning_tree
from finetune.model.cache import is_here, model_cache, snapshot, token_file

HOME = Path("/opt/finetune")  # of the image's own packages and source, which no mount may hide
SCRATCH = HOME / "scratch"  # in the container: temporary files
STARTED = "started"  # in the scratch folder: the command has begun and handles signals itself
SHARED_MEMORY = "8g"  # for NCCL and data loaders; the engines' default of 64 MB leads to a bus error
ALWAYS_PASSED = frozenset(  # variables of the caller's environment, if set
    {
        *("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "OMP_NUM_THREADS"),
        *("ATEN_CPU_CAPABILITY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TERM"),
    }
)
PASSED_WITH_NETWORK = frozenset(
    {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY"),
        *("NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)
PREFIXES_WITH_NETWORK = ("NCCL_", "WANDB_", "MLFLOW_", "TRACKIO_")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # they name files, which the container must see too


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the host that is mounted in the container, by default at the same path."""

    source: Path
    writable: bool
    target: Path | None = None

    @property
    def option(self) -> str:
        """The value of the engines' `--mount` option."""
        access = "" if self.writable else ",readonly"
        return f"type=bind,source={self.source},target={self.target or self.source}{access}"


@dataclass(frozen=True, slots=True)
class Order:
    """One command to run: the engine, the image (its id), `words` after `python -m finetune`, and the folder."""

    engine: Engine
    image: str
    command: str
    words: tuple[str, ...]
    config: Config
    root: Path
    terminal: bool = False  # whether it has interactive input

    @property
    def name(self) -> str:
        """The container's name, from the number of the process that waits for it."""
        return f"finetune-{self.command}-{os.getpid()}"


def command_line(order: Order, scratch: Path) -> list[str]:
    """Return the engine's command line. Raise ConfigError for a folder that cannot be mounted."""
    engine, config, root = order.engine, order.config, order.root
    network = needs_network(config, order.command, root)
    places = [*mounts(config, root, network=network), Mount(scratch, True, SCRATCH)]
    line = [engine.program, "run", "--rm", "--pull=never", f"--name={order.name}", *boundaries(engine, root)]
    line += ["--network", "host" if network else "none", f"--shm-size={SHARED_MEMORY}", "--tmpfs=/tmp"]
    if config.environment == "cuda":
        line += ["--device", "nvidia.com/gpu=all"] if engine.is_podman else ["--gpus", "all"]
    line += [part for place in places for part in ("--mount", place.option)]
    line += [part for name in variables(config, network=network) for part in ("--env", name)]
    line += ["--interactive"] if order.command == "chat" else []  # prompts are typed or piped
    line += ["--tty"] if order.terminal else []
    return [*line, f"--workdir={root}", order.image, "python", "-m", "finetune", *order.words]


def boundaries(engine: Engine, root: Path) -> list[str]:
    """Return the options that restrict the container: no writes outside its mounts, no new rights, no other user."""
    line = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--security-opt=label=disable"]
    user, group = user_of(root)
    if not engine.rootless:
        groups = sorted({*os.getgroups()} - {group}) if user == os.getuid() else []
        return [*line, f"--user={user}:{group}", *(f"--group-add={number}" for number in groups)]
    if engine.is_podman:  # it maps the caller to root by default
        return [*line, "--userns=keep-id", f"--user={user}:{group}", "--group-add=keep-groups"]
    return [*line, "--user=0:0"]  # rootless docker maps the caller to this number


def user_of(root: Path) -> tuple[int, int]:
    """Return the container's user and group: the caller or, if that is root (sudo), the owner of the tree."""
    if os.getuid() == 0:
        return root.stat().st_uid, root.stat().st_gid
    return os.getuid(), os.getgid()


# --------------------------------------------------------------------------------------- mounts and environment


def mounts(config: Config, root: Path, *, network: bool) -> list[Mount]:
    """Return the tree, the targets of its links, other paths in params.yaml and the model cache, each once.

    The cache is writable only with a network, for downloads. Raises ConfigError if a path cannot be mounted.
    """
    cache = model_cache()
    if network:
        cache.mkdir(parents=True, exist_ok=True)
    places = [Mount(root, True)]
    for path, writable in (*outside(config, root), (cache, network), *base_places(config, root), *read_online(network)):
        place = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps the name that the container uses for it
        if place.exists() and not any(place.is_relative_to(other.source) for other in places):
            places.append(Mount(place, writable))
    for place in (mount.source for mount in places):
        if "," in str(place) or '"' in str(place):
            raise ConfigError(place, "a folder with a comma or a quote in its path can't be mounted", "rename it")
        if HOME.is_relative_to(place) or place.is_relative_to(HOME):
            raise ConfigError(place, f"would hide {HOME}, which contains the packages of the image", "move it")
    return places


def outside(config: Config, root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the paths outside of the tree that a command may need, and whether it writes to them."""
    for name in ("work", "work/checkpoints", "out", "reports", "data", "data/prepared", "data/validated"):
        yield (root / name).resolve(), True  # if it is a link; otherwise it is in the tree
    yield (root / config.data.directory).resolve(), False
    yield (root / "models").resolve(), False
    baseline = config.evaluate.baseline
    if isinstance(baseline, RecordedSpec):
        yield (root / baseline.path).resolve(), False
    yield from ((folder, False) for folder in dvc_caches(root))
    owner = owning_tree(root) or root  # its looks at the test set are recorded there and beside git's files
    yield owner / "data", True
    memory = beside_git(owner / "data/looks.json")
    if memory is not None:
        yield memory.parents[1], True


def base_places(config: Config, root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the paths of the bases' files, and the targets of links among them, as in the Hub's cache."""
    for model in models(config):
        named = root / model.base
        folder = named if named.is_dir() else snapshot(model)
        if folder.is_dir():
            yield folder, False
            yield folder.resolve(), False
            yield from ((path.resolve().parent, False) for path in sorted(folder.iterdir()) if path.is_symlink())


def models(config: Config) -> list[ModelConfig]:
    """Return the base models that a run loads."""
    baseline = config.evaluate.baseline
    return [config.model, *([baseline.model] if isinstance(baseline, ModelSpec) else [])]


def read_online(network: bool) -> Iterator[tuple[Path, bool]]:
    """Yield files that are needed only with a network: the user's token for the Hub, and certificates."""
    if network:
        yield token_file(), False
        yield from ((Path(os.environ[name]), False) for name in CERTIFICATES if os.environ.get(name))


def dvc_caches(root: Path) -> list[Path]:
    """Return DVC's cache if it is elsewhere: outputs may be links into it."""
    folder = dvc_config(root).get("cache", "dir", fallback=None)
    return [(root / ".dvc" / folder).resolve()] if folder else []


def dvc_config(root: Path) -> configparser.ConfigParser:
    """Read DVC's tracked config, overridden by the local one; empty if unreadable."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return configparser.ConfigParser(interpolation=None)
    return config


def variables(config: Config, *, network: bool) -> list[str]:
    """Return the container's environment: `NAME=value`, or a bare name for values to inherit, which hides secrets."""
    name, mask = user_name(), os.umask(0)
    os.umask(mask)
    line = ["PYTHONPATH=src", f"HOME={SCRATCH}", f"TMPDIR={SCRATCH}", f"USER={name}", f"LOGNAME={name}"]
    line += [f"FINETUNE_PROCESS={os.getpid()}", f"FINETUNE_STARTED={SCRATCH / STARTED}", f"FINETUNE_UMASK={mask:o}"]
    line += [f"HF_HOME={SCRATCH / 'huggingface'}", f"HF_HUB_CACHE={model_cache()}"]
    line += [f"HF_TOKEN_PATH={token_file()}"] if network else ["HF_HUB_OFFLINE=1"]
    # the tree belongs to the caller, whatever that user is in the container
    line += ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"]
    return line + passed_on(config, os.environ, network=network)


def passed_on(config: Config, environment: Mapping[str, str], *, network: bool) -> list[str]:
    """Return the names of the caller's variables for the container; keys of servers only with a network."""
    wanted = {*ALWAYS_PASSED}
    if network:
        wanted |= {*PASSED_WITH_NETWORK, *CERTIFICATES}
        wanted |= key_variables(config)
        wanted |= {name for name in environment if name.startswith(PREFIXES_WITH_NETWORK)}
    return sorted(name for name in wanted if environment.get(name))


def user_name() -> str:
    """Return the caller's name for libraries in the container; the user's number may have no name on this machine."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user{os.getuid()}"


# -------------------------------------------------------------------------------------------------- the network


def needs_network(config: Config, command: str, root: Path) -> bool:
    """Return whether a command needs a network: for downloads, servers, trackers or other nodes."""
    absent = not is_here(config.model, root)
    if command in ("decide", "check"):
        return False
    if command == "prepare":
        return any(source.hub for source in config.data.sources) or (absent and counts_tokens(config))
    if command in ("train", "join"):
        return absent or config.train.distributed.nodes > 1 or bool({*config.train.report_to} - {"tensorboard"})
    if command in ("evaluate", "chat"):
        harness = command == "evaluate" and config.evaluate.forgetting is not None
        return not all(is_here(model, root) for model in models(config)) or harness or bool(servers(config))
    return absent


def counts_tokens(config: Config) -> bool:
    """Return whether prepare needs the base's tokenizer."""
    bounds = config.data.filters.tokens
    return bounds.min is not None or bounds.max is not None


def servers(config: Config) -> list[ServerSpec | Judge]:
    """Return the servers that evaluate uses."""
    sides = [config.evaluate.baseline, config.evaluate.candidate, *config.evaluate.scorers.values()]
    return [server for server in sides if isinstance(server, ServerSpec | Judge)]


def key_variables(config: Config) -> set[str]:
    """Return the environment variables named in params that contain the servers' keys."""
    return {server.api_key_variable for server in servers(config) if server.api_key_variable}
