"""The container of one command: what it may see and do, as the command line of docker or podman.

It sees this tree under its own path, the model cache and a scratch folder as /tmp, and nothing else of the host; the
image is read-only. It runs as the calling user, without capabilities, and without a network unless the command can't do
without.
"""

import configparser
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.config import Config
from finetune.config_evaluate import ModelForm, ServerForm
from finetune.config_scorers import Judge
from finetune.errors import ConfigError
from finetune.model_files import is_here, model_cache

CACHE = Path("/models")  # in the container: the cache of the Hugging Face libraries
GPUS = {"docker": ["--gpus", "all"], "podman": ["--device", "nvidia.com/gpu=all"]}
SHARED_MEMORY = "8g"  # for NCCL and data loaders; the engines' 64 MB end in a bus error
PASSED = (  # of the caller's environment, where it is set
    *("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING"),
    *(
        "OMP_NUM_THREADS",
        "ATEN_CPU_CAPABILITY",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "FINETUNE_PROMPT",
        "TERM",
    ),
)
PASSED_WITH_NETWORK = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
PREFIXES_WITH_NETWORK = ("NCCL_", "WANDB_", "MLFLOW_", "TRACKIO_")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # name files, which the container must see too


@dataclass(frozen=True, slots=True)
class Mount:
    """A place of the host that the container sees."""

    source: Path
    target: Path
    writable: bool

    @property
    def option(self) -> str:
        """As the engines' `--mount` takes it."""
        return f"type=bind,source={self.source},target={self.target}" + ("" if self.writable else ",readonly")


def command_line(
    engine: str,
    image: str,
    command: str,
    words: list[str],
    config: Config,
    root: Path,
    scratch: Path,
    *,
    terminal: bool,
) -> list[str]:
    """The engine's command line that runs `python -m finetune WORDS` on this tree.

    `scratch` becomes /tmp; a `terminal` can be typed at. ConfigError for a folder that can't be mounted.
    """
    network = needs_network(config, command, root)
    places = [*mounts(config, root, network=network), Mount(scratch, Path("/tmp"), True)]  # noqa: S108
    line = [
        engine,
        "run",
        "--rm",
        "--pull=never",
        f"--name=finetune-{command}-{os.getpid()}",
        *boundaries(engine, root),
    ]
    line += ["--network", "host" if network else "none", f"--shm-size={SHARED_MEMORY}"]
    line += GPUS[engine] if config.environment == "cuda" else []
    line += [part for place in places for part in ("--mount", place.option)]
    line += [part for name in variables(config, root, network=network) for part in ("--env", name)]
    line += ["--interactive", "--tty"] if terminal else []
    return [*line, f"--workdir={root}", image, "python", "-m", "finetune", *words]


def boundaries(engine: str, root: Path) -> list[str]:
    """What the container may not: write outside of its mounts, gain rights, be another user."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    found = {name: resource.getrlimit(number) for name, number in limits.items()}
    line = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--security-opt=label=disable"]
    line += [f"--ulimit={name}={soft}:{hard}" for name, (soft, hard) in found.items()]
    # without root podman maps the caller to root in the container, unless told to keep the number
    line += ["--userns=keep-id"] if engine == "podman" and os.getuid() else []
    return [*line, "--user={}:{}".format(*user_of(root))]


def user_of(root: Path) -> tuple[int, int]:
    """The user and group that a container runs as: the caller, or, where that is root (sudo), the owner of the tree."""
    if os.getuid() == 0:
        return root.stat().st_uid, root.stat().st_gid
    return os.getuid(), os.getgid()


# ------------------------------------------------------------------------------------------------- what it sees


def mounts(config: Config, root: Path, *, network: bool) -> list[Mount]:
    """The tree, what its links lead to, the data and models that params.yaml names outside of it, and the model cache.

    The cache can be written to only with a network, to fetch into.
    """
    places = [Mount(root, root, True)]
    for path, writable in outside(config, root):
        if path.exists() and not any(path.is_relative_to(place.source) for place in places):
            places.append(Mount(path, path, writable))
    cache = model_cache()
    if network:
        cache.mkdir(parents=True, exist_ok=True)
    if cache.is_dir():
        places.append(Mount(cache.resolve(), CACHE, network))
    token = cache.parent / "token"
    if network and token.is_file():
        places.append(Mount(token.resolve(), CACHE.with_name("token"), False))
    if network:
        files = {Path(os.environ[name]).resolve() for name in CERTIFICATES if Path(os.environ.get(name, "")).is_file()}
        places += [Mount(file, file, False) for file in sorted(files)]
    for place in places:
        if "," in str(place.source) or '"' in str(place.source):
            raise ConfigError(
                f"{place.source}: a folder with a comma or a quote in its path can't be mounted; rename it"
            )
    return places


def outside(config: Config, root: Path) -> Iterator[tuple[Path, bool]]:
    """Places outside of the tree that a command needs, and whether it writes there."""
    for name in ("work", "work/checkpoints", "out", "reports", "data", "data/prepared", "data/validated"):
        yield (root / name).resolve(), True  # where it is a link; else it lies in the tree
    yield (root / config.data.directory).resolve(), False
    yield (root / "models").resolve(), False
    models = [
        config.model,
        *([config.evaluate.baseline.model] if isinstance(config.evaluate.baseline, ModelForm) else []),
    ]
    yield from (((root / model.base).resolve(), False) for model in models if (root / model.base).is_dir())
    yield from ((folder, False) for folder in dvc_caches(root))
    git = root / ".git"
    if git.is_file():  # a worktree: its own folder lies in that of the main tree, where looks are remembered
        own = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        yield own.resolve().parent.parent, True


def dvc_caches(root: Path) -> list[Path]:
    """DVC's cache where it was put elsewhere: outputs may be links into it."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    folder = config.get("cache", "dir", fallback=None)
    return [(root / ".dvc" / folder).resolve()] if folder else []


def variables(config: Config, root: Path, *, network: bool) -> list[str]:
    """The container's environment: `NAME=value`, or the bare name of what is taken over, so that no secret is seen."""
    name = user_name()
    line = [f"PYTHONPATH={root / 'src'}", "HOME=/tmp", f"USER={name}", f"LOGNAME={name}"]
    line += [f"FINETUNE_PROCESS={os.getpid()}", "HF_HOME=/tmp/huggingface", f"HF_HUB_CACHE={CACHE}"]
    line += [f"HF_TOKEN_PATH={CACHE.with_name('token')}"] if network else ["HF_HUB_OFFLINE=1"]
    # the tree belongs to the caller, whatever user that is in the container
    line += ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"]
    return line + passed_on(config, os.environ, network=network)


def passed_on(config: Config, environment: Mapping[str, str], *, network: bool) -> list[str]:
    """The names of the caller's variables that the container gets; keys of servers only where there is a network."""
    wanted = {*PASSED}
    if network:
        wanted |= {*PASSED_WITH_NETWORK, *CERTIFICATES}
        wanted |= {key for server in servers(config) if (key := server.api_key_variable)}
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
    bases = not is_here(config.model, root)
    if command == "prepare":
        return any(source.hub for source in config.data.sources) or (bases and counts_tokens(config))
    if command == "validate":
        return bases
    if command in ("train", "join"):
        return bases or config.train.distributed.nodes > 1 or bool({*config.train.report_to} - {"tensorboard"})
    if command == "decide":
        return False
    baseline = config.evaluate.baseline
    other = isinstance(baseline, ModelForm) and not is_here(baseline.model, root)
    tasks = config.evaluate.forgetting is not None and config.evaluate.forgetting.folder is None
    return bases or other or tasks or bool(servers(config))


def counts_tokens(config: Config) -> bool:
    """Whether prepare needs the base's tokenizer."""
    bounds = config.data.filters.tokens
    return bounds.min is not None or bounds.max is not None


def servers(config: Config) -> list[ServerForm | Judge]:
    """The servers that evaluate asks."""
    asked = [config.evaluate.baseline, config.evaluate.candidate, *config.evaluate.scorers.values()]
    return [server for server in asked if isinstance(server, ServerForm | Judge)]
