"""The container of one command: what it may see and do, as the command line of docker or podman.

It sees this tree and the model cache under their own paths, a scratch folder, and nothing else of the host; the image
is read-only. It runs as the calling user, without capabilities, and without a network unless the command can't do
without.
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
SCRATCH = HOME / "scratch"  # in the container: what is gone afterwards
STARTED = "started"  # in the scratch folder: the command has begun, and hears signals itself
SHARED_MEMORY = "8g"  # for NCCL and data loaders; the engines' 64 MB end in a bus error
ALWAYS_PASSED = frozenset(  # of the caller's environment, where it is set
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
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # name files, which the container must see too


@dataclass(frozen=True, slots=True)
class Mount:
    """A place of the host that the container sees, under its own path unless another is said."""

    source: Path
    writable: bool
    target: Path | None = None

    @property
    def option(self) -> str:
        """As the engines' `--mount` takes it."""
        access = "" if self.writable else ",readonly"
        return f"type=bind,source={self.source},target={self.target or self.source}{access}"


@dataclass(frozen=True, slots=True)
class Order:
    """One command to run: by which engine, from which image (its id), `words` after `python -m finetune`, where."""

    engine: Engine
    image: str
    command: str
    words: tuple[str, ...]
    config: Config
    root: Path
    terminal: bool = False  # it can be typed at

    @property
    def name(self) -> str:
        """The container's name, by the process that waits for it."""
        return f"finetune-{self.command}-{os.getpid()}"


def command_line(order: Order, scratch: Path) -> list[str]:
    """The engine's command line; ConfigError for a folder that can't be mounted."""
    engine, config, root = order.engine, order.config, order.root
    network = needs_network(config, order.command, root)
    places = [*mounts(config, root, network=network), Mount(scratch, True, SCRATCH)]
    line = [engine.program, "run", "--rm", "--pull=never", f"--name={order.name}", *boundaries(engine, root)]
    line += ["--network", "host" if network else "none", f"--shm-size={SHARED_MEMORY}", "--tmpfs=/tmp"]
    if config.environment == "cuda":
        line += ["--device", "nvidia.com/gpu=all"] if engine.is_podman else ["--gpus", "all"]
    line += [part for place in places for part in ("--mount", place.option)]
    line += [part for name in variables(config, network=network) for part in ("--env", name)]
    line += ["--interactive"] if order.command == "chat" else []  # prompts come by the keyboard or a pipe
    line += ["--tty"] if order.terminal else []
    return [*line, f"--workdir={root}", order.image, "python", "-m", "finetune", *order.words]


def boundaries(engine: Engine, root: Path) -> list[str]:
    """What the container may not: write outside of its mounts, gain rights, be another user."""
    line = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--security-opt=label=disable"]
    user, group = user_of(root)
    if not engine.rootless:
        groups = sorted({*os.getgroups()} - {group}) if user == os.getuid() else []
        return [*line, f"--user={user}:{group}", *(f"--group-add={number}" for number in groups)]
    if engine.is_podman:  # it maps the caller to root, unless told to keep the number
        return [*line, "--userns=keep-id", f"--user={user}:{group}", "--group-add=keep-groups"]
    return [*line, "--user=0:0"]  # docker without root knows the caller by this number alone


def user_of(root: Path) -> tuple[int, int]:
    """The user and group that a container runs as: the caller, or, where that is root (sudo), the owner of the tree."""
    if os.getuid() == 0:
        return root.stat().st_uid, root.stat().st_gid
    return os.getuid(), os.getgid()


# ------------------------------------------------------------------------------------------------- what it sees


def mounts(config: Config, root: Path, *, network: bool) -> list[Mount]:
    """The tree, what leads out of it, what params.yaml names elsewhere, and the model cache; each place once.

    The cache can be written to only with a network, to fetch into. ConfigError where a place can't be mounted.
    """
    cache = model_cache()
    if network:
        cache.mkdir(parents=True, exist_ok=True)
    places = [Mount(root, True)]
    for path, writable in (*outside(config, root), (cache, network), *base_places(config, root), *read_online(network)):
        place = Path(os.path.abspath(path))  # noqa: PTH100 - a link stays the name that the container knows it by
        if place.exists() and not any(place.is_relative_to(other.source) for other in places):
            places.append(Mount(place, writable))
    for place in (mount.source for mount in places):
        if "," in str(place) or '"' in str(place):
            raise ConfigError(place, "a folder with a comma or a quote in its path can't be mounted", "rename it")
        if HOME.is_relative_to(place) or place.is_relative_to(HOME):
            raise ConfigError(place, f"would hide {HOME}, which contains the packages of the image", "move it")
    return places


def outside(config: Config, root: Path) -> Iterator[tuple[Path, bool]]:
    """Places that a command needs and that may lie outside of the tree, and whether it writes there."""
    for name in ("work", "work/checkpoints", "out", "reports", "data", "data/prepared", "data/validated"):
        yield (root / name).resolve(), True  # where it is a link; else it lies in the tree
    yield (root / config.data.directory).resolve(), False
    yield (root / "models").resolve(), False
    baseline = config.evaluate.baseline
    if isinstance(baseline, RecordedSpec):
        yield (root / baseline.path).resolve(), False
    yield from ((folder, False) for folder in dvc_caches(root))
    owner = owning_tree(root) or root  # where looks at the test set are counted, and remembered beside git's files
    yield owner / "data", True
    memory = beside_git(owner / "data/looks.json")
    if memory is not None:
        yield memory.parents[1], True


def base_places(config: Config, root: Path) -> Iterator[tuple[Path, bool]]:
    """Where the bases' files are, and where they really are: the Hub's cache is made of links, as are many folders."""
    for model in models(config):
        named = root / model.base
        folder = named if named.is_dir() else snapshot(model)
        if folder.is_dir():
            yield folder, False
            yield folder.resolve(), False
            yield from ((path.resolve().parent, False) for path in sorted(folder.iterdir()) if path.is_symlink())


def models(config: Config) -> list[ModelConfig]:
    """The bases that a run loads."""
    baseline = config.evaluate.baseline
    return [config.model, *([baseline.model] if isinstance(baseline, ModelSpec) else [])]


def read_online(network: bool) -> Iterator[tuple[Path, bool]]:
    """Files that are read only to reach others: the user's token for the Hub, and certificates."""
    if network:
        yield token_file(), False
        yield from ((Path(os.environ[name]), False) for name in CERTIFICATES if os.environ.get(name))


def dvc_caches(root: Path) -> list[Path]:
    """DVC's cache where it was put elsewhere: outputs may be links into it."""
    folder = dvc_config(root).get("cache", "dir", fallback=None)
    return [(root / ".dvc" / folder).resolve()] if folder else []


def dvc_config(root: Path) -> configparser.ConfigParser:
    """The repository's config of DVC, and over it the one that is not in git; empty where it can't be read."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return configparser.ConfigParser(interpolation=None)
    return config


def variables(config: Config, *, network: bool) -> list[str]:
    """The container's environment: `NAME=value`, or the bare name of what is taken over, so that no secret is seen."""
    name, mask = user_name(), os.umask(0)
    os.umask(mask)
    line = ["PYTHONPATH=src", f"HOME={SCRATCH}", f"TMPDIR={SCRATCH}", f"USER={name}", f"LOGNAME={name}"]
    line += [f"FINETUNE_PROCESS={os.getpid()}", f"FINETUNE_STARTED={SCRATCH / STARTED}", f"FINETUNE_UMASK={mask:o}"]
    line += [f"HF_HOME={SCRATCH / 'huggingface'}", f"HF_HUB_CACHE={model_cache()}"]
    line += [f"HF_TOKEN_PATH={token_file()}"] if network else ["HF_HUB_OFFLINE=1"]
    # the tree belongs to the caller, whatever user that is in the container
    line += ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"]
    return line + passed_on(config, os.environ, network=network)


def passed_on(config: Config, environment: Mapping[str, str], *, network: bool) -> list[str]:
    """The names of the caller's variables that the container gets; keys of servers only where there is a network."""
    wanted = {*ALWAYS_PASSED}
    if network:
        wanted |= {*PASSED_WITH_NETWORK, *CERTIFICATES}
        wanted |= key_variables(config)
        wanted |= {name for name in environment if name.startswith(PREFIXES_WITH_NETWORK)}
    return sorted(name for name in wanted if environment.get(name))


def user_name() -> str:
    """The caller's name, which the container's libraries ask for; a number of this machine need not have one."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user{os.getuid()}"


# -------------------------------------------------------------------------------------------------- the network


def needs_network(config: Config, command: str, root: Path) -> bool:
    """Whether a command has to reach others: for what is not on this machine yet, servers, trackers, other nodes."""
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
    """Whether prepare needs the base's tokenizer."""
    bounds = config.data.filters.tokens
    return bounds.min is not None or bounds.max is not None


def servers(config: Config) -> list[ServerSpec | Judge]:
    """The servers that evaluate asks."""
    asked = [config.evaluate.baseline, config.evaluate.candidate, *config.evaluate.scorers.values()]
    return [server for server in asked if isinstance(server, ServerSpec | Judge)]


def key_variables(config: Config) -> set[str]:
    """The environment variables that params name as holders of the servers' keys."""
    return {server.api_key_variable for server in servers(config) if server.api_key_variable}
