"""The command line as a person uses it: the whole chain, and every wrong input in one line without a traceback."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import torch
import typer

from amc.cli.main import app, main
from amc.config.keys import keys_of
from amc.config.search import SearchConfig
from amc.tasks.models import digits
from hw_profiles.passes import AGAIN_MINUTES

SMALL = "tests.tasks.small:make_task"
pytestmark = pytest.mark.xdist_group("cli")  # one process makes the search that its tests share
QUICK = [
    *("--task", SMALL, "--constraint", "macs=0.3", "--agent", "knapsack", "--set", "compression.images=64"),
    *("--set", "compression.positions=8", "--set", "knapsack.images=32", "--set", "knapsack.widths=3"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Amc:
    """Calls the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["amc", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def refuses(self, *arguments: object) -> str:
        outcome = self(*arguments)
        assert outcome.code != 0
        assert "Traceback" not in outcome.err + outcome.out
        text = outcome.err.strip()
        assert text.startswith("error:"), text
        assert "\n" not in text
        return text


@pytest.fixture
def amc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Amc:
    return Amc(monkeypatch, capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["amc", "search", *QUICK, "--out", str(folder)])
        patch.setenv("AMC_CACHE", str(folder.parent / "cache"))
        main_quietly()
    return folder


def main_quietly() -> None:
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def test_help_names_the_commands(amc: Amc) -> None:
    text = amc("--help").out
    assert all(command in text for command in ("inspect", "search", "resume", "apply", "export"))


def test_the_version_is_that_of_the_distribution(amc: Amc) -> None:
    assert amc("--version").out == f"amc {version('amc')}\n"


def test_options_say_what_the_fields_of_the_configuration_say() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {option.opts[0]: option for option in commands["search"].params}
    keys = {f"--{key.name.rpartition('.')[2].replace('_', '-')}": key for key in keys_of(SearchConfig)}
    for name in ("--agent", "--round-to", "--importance", "--reward", "--skip", "--constraint", "--max-minutes"):
        assert keys[name].meaning[1:] in options[name].help
        assert options[name].default is None
    assert "Default: ddpg." in options["--agent"].help
    assert "(ddpg, td3, sac, cmaes, swap, tpe, gp, random, knapsack, uniform)" in options["--agent"].help
    assert "Default" not in options["--round-to"].help
    assert "Default: 3600." in options["--limit"].help
    assert commands["compare"].params[0].name == "recipe"
    again = {option.opts[0]: option for option in commands["profile"].commands["measure"].params}["--again-minutes"]
    assert again.help.endswith(f"left out: {AGAIN_MINUTES:g}.")


def test_config_lists_every_key_within_80_columns(amc: Amc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = amc("config").out
    names = [line.split()[0] for line in text.splitlines() if re.match(r" ?[a-z]", line)]
    assert set(names) >= {key.name for key in keys_of(SearchConfig)}
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"compression.images +2000 +calibration images", text)


def test_config_shows_what_is_asked_for(amc: Amc) -> None:
    text = amc("config", "learning.sigma").out
    assert "learning.sigma_floor" in text
    assert "compression" not in text
    listed = json.loads(amc("config", "learning.batch", "--json").out)
    assert [one["name"] for one in listed] == ["learning.batch_size"]
    assert listed[0] | {"meaning": ""} == {
        "name": "learning.batch_size",
        "type": "integer >= 1 and <= 65536",
        "default": 64,
        "required": False,
        "meaning": "",
    }
    assert "did you mean compression.images?" in amc.refuses("config", "compression.imagse")


def test_a_search_writes_the_documented_run_folder(run: Path) -> None:
    documented = (Path(__file__).resolve().parents[2] / "docs" / "run_folder.md").read_text()
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.toml",
        "policy.json",
        "network.safetensors",
        "result.json",
        "episodes.jsonl",
        "timings.jsonl",
        "report.html",
        "snapshot.safetensors",
        "structure.safetensors",
        "interface.safetensors",
        "scores.safetensors",
        "tensorboard",
    }
    assert all(f"`{name}`" in documented for name in names)
    result = json.loads((run / "result.json").read_text())
    assert result["found"]["costs"]["macs"] <= result["budgets"]["macs"]
    assert result["measured"]["latency_ms"].keys() == {"dense", "uniform", "found"}
    line = json.loads((run / "episodes.jsonl").read_text().splitlines()[0])
    assert line.keys() == {
        "episode",
        "searcher",
        "actions",
        "choices",
        "costs",
        "accuracy",
        "loss",
        "output_error",
        "reward",
        "images",
        "image_forwards",
    }


def test_the_stored_configuration_repeats_the_run(amc: Amc, bare: None, run: Path, tmp_path: Path) -> None:
    assert amc("search", run / "config.toml", "--task", SMALL, "--out", tmp_path / "again").code == 0
    for name in ("policy.json", "episodes.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_inspect_shows_units_and_reasons(amc: Amc) -> None:
    text = amc("inspect", "--task", "digits").out
    assert "units can be pruned" in text
    assert "network's output" in text


def test_inspect_prints_json_under_the_rules(amc: Amc) -> None:
    def macs(*options: str) -> float:
        found = json.loads(amc("inspect", "--task", "digits", "--json", *options).out)
        return float(found["costs"][0]["lowest"])

    free, bounded = macs(), macs("--min-ratio", "0.5")
    assert 0 < free < bounded < macs("--round-to", "8", "--min-ratio", "0.5")


def test_inspect_takes_a_sparsity_alone(amc: Amc) -> None:
    outcome = amc("inspect", "--task", "digits", "--choose", "mixed", "--constraint", "sparsity=2:4@multiple-of-4")
    assert "may take a pattern" in outcome.out


def test_apply_writes_a_network_that_gives_the_reported_accuracy(amc: Amc, run: Path, tmp_path: Path) -> None:
    outcome = amc("apply", run / "policy.json", "--task", SMALL, "--out", tmp_path / "small")
    assert outcome.code == 0
    assert "pruned" in outcome.out
    ours = safetensors.torch.load_file(tmp_path / "small" / "network.safetensors")
    theirs = safetensors.torch.load_file(run / "network.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_export_writes_a_verified_onnx_file(amc: Amc, untimed: None, run: Path, tmp_path: Path) -> None:
    outcome = amc("export", run / "policy.json", "--task", SMALL, "--out", tmp_path / "small.onnx")
    assert outcome.code == 0
    assert "agree" in outcome.out
    assert (tmp_path / "small.onnx").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "nonsense"], "digits"),
        (["--task", "no_such_module:task"], "no_such_module"),
        (["--task", "digits", "--agent", "ppo"], "agent"),
        (["--task", "digits", "--importance", "l9"], "importance"),
        (["--task", "digits", "--repair", "glue"], "repair"),
        (["--task", "digits", "--constraint", "macs=0"], "positive"),
        (["--task", "digits", "--constraint", "macs=-0.5"], "positive"),
        (["--task", "digits", "--constraint", "macs=half"], "NAME=NUMBER"),
        (["--task", "digits", "--constraint", "macs=nan"], "positive"),
        (["--task", "digits", "--constraint", "macs=0.00001"], "lowest found"),
        (["--task", "digits", "--constraint", "watts=0.5"], "macs"),
        (["--task", "digits", "--min-ratio", "0.9"], "lowest found"),
        (["--task", "digits", "--min-ratio", "0.9", "--max-ratio", "0.1"], "min_ratio"),
        (["--task", "digits", "--round-to", "0"], "round_to"),
        (["--task", "digits", "--skip", "nothing*"], "matches none"),
        (["--task", "digits", "--set", "nonsense"], "KEY=VALUE"),
        (["--task", "digits", "--set", "compression.image=9"], "did you mean compression.images? (`amc config` lists"),
        (["--task", "digits", "--set", "learning.sigm=1"], "did you mean learning.sigma? (`amc config` lists all)"),
        (["--task", "digits", "--workers", "-1"], "workers: Input should be greater than or equal to 0, but got -1"),
        (["--task", "digits", "--checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["--task", "cifar10-resnet56"], "--data"),
        (["--task", "cifar10-resnet56", "--data", "nowhere"], "--checkpoint"),
        ([], "task"),
        (["missing.toml"], "missing.toml"),
    ],
)
def test_search_refuses(amc: Amc, tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in amc.refuses("search", *arguments, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def damaged(kind: str, path: Path) -> Path:
    """A checkpoint of the digits network with one thing wrong."""
    state = safetensors.torch.load_file(digits.WEIGHTS)
    first = next(name for name, tensor in state.items() if tensor.ndim == 4)
    if kind == "nan":
        state[first][0] = float("nan")
    elif kind == "shape":
        state[first] = state[first][:, :, :1].contiguous()
    elif kind == "keys":
        state["other"] = state.pop(first)
    data = safetensors.torch.save(state)
    path.write_bytes(data[: len(data) // 2] if kind == "truncated" else data)
    return path


@pytest.mark.parametrize("kind", ["nan", "shape", "keys", "truncated"])
def test_search_refuses_a_damaged_checkpoint(amc: Amc, tmp_path: Path, kind: str) -> None:
    path = damaged(kind, tmp_path / "weights.safetensors")
    amc.refuses("search", "--task", "digits", "--checkpoint", path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused_and_kept(amc: Amc, run: Path) -> None:
    before = (run / "result.json").read_bytes()
    assert "already holds" in amc.refuses("search", *QUICK, "--out", run)
    assert (run / "result.json").read_bytes() == before


def test_fresh_moves_an_earlier_run_aside(amc: Amc, bare: None, tmp_path: Path) -> None:
    old = tmp_path / "run"
    old.mkdir()
    (old / "result.json").write_text("{}")
    assert amc("search", *QUICK, "--out", old, "--fresh").code == 0
    assert (tmp_path / "run.1" / "result.json").read_text() == "{}"


def test_a_run_folder_that_cannot_be_written_is_refused(amc: Amc, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "writable" in amc.refuses("search", *QUICK, "--out", tmp_path / "file" / "run")


def test_a_full_disk_ends_in_one_line(amc: Amc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amc.storage.files.os.fsync", full)
    text = amc.refuses("search", *QUICK, "--out", tmp_path / "run")
    assert str(tmp_path / "run" / "config.toml") in text
    assert "(No space left on device): make room on the disk" in text
    assert not list((tmp_path / "run").iterdir())


def test_ctrl_c_ends_in_one_line(amc: Amc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amc.runs.runner.search", stop)
    run = tmp_path / "run[x]"
    outcome = amc("search", *QUICK, "--out", run)
    assert outcome.code == 130
    assert outcome.err == f"stopped: no round has ended yet in {run}: `amc resume {run}` goes on\n"


@pytest.mark.parametrize("kind", ["truncated", "newer", "other network", "missing", "list"])
def test_apply_refuses_a_bad_policy(amc: Amc, run: Path, tmp_path: Path, kind: str) -> None:
    path, data = tmp_path / "policy.json", json.loads((run / "policy.json").read_text())
    if kind == "newer":
        data["schema_version"] = 99
    if kind == "other network":
        data["network"]["structure"] = "sha256:0"
    text = json.dumps([] if kind == "list" else data)
    if kind != "missing":
        path.write_text(text[: len(text) // 2] if kind == "truncated" else text)
    amc.refuses("apply", path, "--task", SMALL, "--out", tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_apply_warns_about_other_weights(amc: Amc, bare: None, tmp_path: Path) -> None:
    state = {name: tensor * 1.01 for name, tensor in safetensors.torch.load_file(digits.WEIGHTS).items()}
    state = {k: v.to(torch.int64) if k.endswith("num_batches_tracked") else v for k, v in state.items()}
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    run, task = tmp_path / "run", ("--task", "digits")
    quick = ("--agent", "uniform", "--set", "compression.images=64", "--set", "compression.positions=8")
    assert amc("search", *task, "--constraint", "macs=0.3", *quick, "--out", run).code == 0
    others = ("--checkpoint", tmp_path / "other.safetensors")
    outcome = amc("apply", run / "policy.json", *task, *others, "--out", tmp_path / "small")
    assert outcome.code == 0
    assert "other weights" in outcome.out
    assert "other weights" not in amc("apply", run / "policy.json", *task, "--out", tmp_path / "same").out


def test_export_refuses_a_folder_that_does_not_exist(amc: Amc, run: Path, tmp_path: Path) -> None:
    told = amc.refuses("export", run / "policy.json", "--task", SMALL, "--out", tmp_path / "no" / "x.onnx")
    assert "must exist" in told


def test_resume_of_a_run_that_has_ended_shows_its_result(amc: Amc, run: Path) -> None:
    outcome = amc("resume", run)
    assert outcome.code == 0
    assert "found" in outcome.out


@pytest.mark.parametrize("more", ["200", "+0", "+-3", "+x"])
def test_resume_takes_more_episodes_only_as_plus_n(amc: Amc, run: Path, more: str) -> None:
    assert "must read +N" in amc.refuses("resume", run, "--episodes", more)


def test_resume_refuses_a_folder_without_a_run(amc: Amc, tmp_path: Path) -> None:
    assert "holds no config.toml" in amc.refuses("resume", tmp_path)


def test_compare_needs_an_effort(amc: Amc, tmp_path: Path) -> None:
    assert "pass for example --effort" in amc.refuses("compare", "--task", "digits", "--out", tmp_path / "out")


def test_compare_takes_a_recipe(amc: Amc, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('task = "digits"\n')
    arguments = [tmp_path / "recipe.toml", "--agents", "random", "ppo", "--out", tmp_path / "out"]
    assert "pass for example --effort" in amc.refuses("compare", *arguments)
    assert "uniform, but got 'ppo'" in amc.refuses("compare", *arguments, "--effort", "9999")
    assert "missing.toml" in amc.refuses("compare", "missing.toml", "--effort", "9999")


def test_compare_refuses_an_unknown_agent_before_any_work(amc: Amc, tmp_path: Path) -> None:
    arguments = ["--task", "digits", "--agents", "random", "ppo", "--effort", "9999", "--out", tmp_path / "out"]
    assert "uniform, but got 'ppo'" in amc.refuses("compare", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (
            "speed",
            "must be one of auto, accuracy, accuracy_latency, error_log_cost, error_log_params, loss, output_error",
        ),
        ("nowhere:reward", "reward 'nowhere:reward' must name a module"),
        ("math:tau", "must name a function"),
        ("math:sqrt", "must turn an Evaluation into a number, but raised TypeError"),
    ],
)
def test_search_refuses_a_reward_that_is_none(amc: Amc, tmp_path: Path, reward: str, told: str) -> None:
    assert told in amc.refuses("search", *QUICK, "--reward", reward, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
