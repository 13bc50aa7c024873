"""Names and errors of the models on the command line of `minirl evaluate`; no process starts."""

import pytest

from launch.config import RunConfig
from launch.evaluation.given_models import given_models, trained_teachers
from launch.prepare import PreparedRun, prepare
from minirl.config.reader import read_config
from minirl.errors import InputError
from tests.launch.conftest import VOCABULARY
from tests.tiny import tiny_model


def prepared_as(experiment, name: str, **changes) -> PreparedRun:
    (experiment.root / name).mkdir()
    return prepare(read_config(RunConfig, experiment.config(name, **changes), []))


@pytest.fixture(scope="module")
def prepared(experiment):
    return prepared_as(experiment, "measured")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for run in ("a", "b"):
        tiny_model(root / run / "distill" / "last", "gpt2", vocab=VOCABULARY, layers=1)
    return root


def test_a_name_is_the_shortest_distinguishing_end_of_the_path(prepared, models):
    first, second = (str(models / run / "distill" / "last") for run in ("a", "b"))
    assert given_models([first], prepared) == {"distill-last": first}
    assert given_models([first, second], prepared) == {"a-distill-last": first, "b-distill-last": second}
    assert given_models([f"mine={first}", second], prepared) == {"mine": first, "distill-last": second}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher={model}"], "the name teacher is taken"),
        (["{model}", "{model}"], "the name distill-last is taken; give it another one, --model NAME="),
        (["{model}/nothing"], "--model last-nothing: .* is not a model: there is no such directory"),
        (["small={small}"], "--model small: .*tokenizers of student and teacher differ"),
        (["short={short}"], "--model short: the model reads at most 8 tokens"),
        (["half={half}"], "--model half: .*model.safetensors is no complete safetensors file"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused(prepared, models, tmp_path, arguments, message):
    directories = {
        "model": models / "a" / "distill" / "last",
        "small": tiny_model(tmp_path / "small", "gpt2", vocab=VOCABULARY - 10) and tmp_path / "small",
        "short": tiny_model(tmp_path / "short", "gpt2", vocab=VOCABULARY, max_positions=8) and tmp_path / "short",
    }
    directories["half"] = tiny_model(tmp_path / "half", "gpt2", vocab=VOCABULARY) and tmp_path / "half"
    weights = directories["half"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=message):
        given_models([argument.format(**directories) for argument in arguments], prepared)


def test_a_run_that_tunes_its_teacher_evaluates_against_the_tuned_one(prepared, experiment, tmp_path):
    assert trained_teachers(prepared) == prepared.teachers
    stages = {**experiment.settings["stages"], "sft_teacher": experiment.settings["stages"]["sft"]}
    tuning = prepared_as(experiment, "tuning", stages=stages)
    with pytest.raises(InputError, match="the config fine-tunes its teacher first, and .*sft_teacher/best is not there"):
        trained_teachers(tuning)
    tiny_model(tuning.directory / "sft_teacher" / "best", "llama", vocab=VOCABULARY)
    assert trained_teachers(tuning) == (str(tuning.directory / "sft_teacher" / "best"),)
