"""What the options mean: types of fields, the seed, and how a click log is read."""
import pytest

from sbr_core import cli_options, workflow
from sbr_core.config import TrainConfig


@pytest.fixture
def config_of(sbr, monkeypatch):
    """The configuration that a train command comes to."""

    def config(*options) -> TrainConfig:
        seen = []
        monkeypatch.setattr(workflow, "train", lambda recipe, *rest, **more: seen.append(recipe.config) or {})
        code, _, err = sbr("train", "--model", "stamp", "--json", *options)
        assert code == 0, err
        return seen[0]

    return config


@pytest.mark.parametrize("pair, message", [
    ("lr=abc", "--config lr is float, got 'abc'"), ("epochs=two", "--config epochs is int, got 'two'"),
    ("epochs=1.5", "--config epochs is int, got 1.5"), ("epochs=true", "--config epochs is int, got True"),
    ("loss_arguments=3", "--config loss_arguments is dict, got 3"), ("loss=3", "--config loss is str, got 3"),
    ("lr_every=often", "--config lr_every is int | None, got 'often'"), ("lr=NaN", "--config lr is float, got nan"),
    ("compile=1", "--config compile is bool, got 1"), ("seed=x", "--config seed is int, got 'x'"),
])
def test_a_field_of_another_type_is_refused_by_name(pair, message, sbr):
    assert sbr("train", "--model", "sr-gnn", "--config", pair) == (1, "", f"error: {message}\n")


def test_fields_of_every_type_are_taken():
    pairs = ["lr=1", "lr_every=null", "clip_grad=5", "compile=true", "loss=triplet", 'loss_arguments={"negatives": 4}']
    found = cli_options.config_fields(pairs)
    assert found == {"lr": 1.0, "lr_every": None, "clip_grad": 5.0, "compile": True, "loss": "triplet",
                     "loss_arguments": {"negatives": 4}}
    assert type(found["lr"]) is type(found["clip_grad"]) is float


def test_the_seed_is_the_option_s_or_else_the_configuration_s(config_of):
    assert config_of().seed == 0 and config_of("--config", "seed=7").seed == 7 and config_of("--seed", "3").seed == 3
    assert config_of("--config", "seed=7", "--seed", "0").seed == 0


def test_arguments_of_the_recipe_s_loss_are_not_given_to_another(sbr, monkeypatch):
    def config(*options):
        seen = []
        monkeypatch.setattr(workflow, "train", lambda recipe, *rest, **more: seen.append(recipe.config) or {})
        assert sbr("train", "--model", "gru4rec-2018", "--json", *options)[0] == 0
        return seen[0].loss, seen[0].loss_arguments

    recipe, given = ("xe", {"negatives": 100, "alpha": 0.5}), {"negatives": 9}  # of the demo shop
    own = ["--config", 'loss_arguments={"negatives": 9}']
    assert config() == config("--loss", "xe") == recipe and config(*own) == ("xe", given)
    assert config("--loss", "full") == config("--config", "loss=full") == ("full", {})
    assert config("--loss", "bpr-max", *own) == ("bpr-max", given)


def test_another_loss_than_the_recipe_s_trains(log, sbr, sbr_json):
    data = ["--dataset", log, "--log", COLUMNS, "--log", "test_seconds=36000"]
    command = ["train", "--model", "gru4rec-2018", "--epochs", 1, "--set", "dim=8", *data]
    assert "negatives must lie in 0..5" in sbr(*command)[2]
    for options in (["--loss", "full"], ["--config", 'loss_arguments={"negatives":3}']):
        assert len(sbr_json(*command, *options)["epochs"]) == 1


COLUMNS = "session=visit,item=product,time=when"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A CSV of sixty visits of three clicks, one an hour, whose items follow one another."""
    monkeypatch.setenv("SBR_CACHE", str(tmp_path / "cache"))
    rows = [f"v{s},kiosk,{'abcdef'[(s + n) % 6]},{3600 * s + n}" for s in range(60) for n in range(3)]
    (tmp_path / "log.csv").write_text("visit,place,product,when\n" + "\n".join(rows) + "\n")
    return tmp_path / "log.csv"


def test_a_log_of_your_own_goes_through_every_command(log, sbr_json, tmp_path):
    data = ["--dataset", log, "--log", COLUMNS, "--log", "test_seconds=36000"]
    found = sbr_json("data", "stats", *data)
    assert (found["name"], found["train_sessions"], found["test_sessions"], found["items"]) == ("log.csv", 49, 10, 6)
    assert sbr_json("data", "prepare", *data)["fingerprint"] == found["fingerprint"]
    counted = sbr_json("evaluate", "--model", "markov", *data)
    assert counted["examples"] == found["test_examples"] == 20 and counted["HR@5"] == 100
    run = ["--epochs", 1, "--set", "dim=8", "--output", tmp_path / "run"]
    trained = sbr_json("train", "--model", "stamp", *run, *data)
    again = sbr_json("evaluate", "--checkpoint", tmp_path / "run", *data)
    assert again["MRR@20"] == pytest.approx(trained["best"]["MRR@20"], abs=1e-9)
    assert len(sbr_json("recommend", "--checkpoint", tmp_path / "run", "--session", "a,b", "-k", 3)["items"]) == 3


def test_users_are_cut_where_the_option_says(log, sbr_json):
    options = "session=place,item=product,time=when,session_gap=1800,test_seconds=36000,protocol=scalable"
    found = sbr_json("data", "stats", "--dataset", log, "--log", options)  # one kiosk, a visit an hour
    assert (found["train_sessions"], found["test_sessions"], found["protocol"]) == (49, 11, "scalable")


@pytest.mark.parametrize("options, message", [
    ([], "no column session, item, time; the columns found separated by ',' are visit, place, product, when: say whi"),
    (["--log", "session=visit,item=sku,time=when"], "log.csv: no column sku; the columns found"),
    (["--log", "session=visit,item=visit,time=when"], "session=visit, item=visit, time=when name one column twice"),
    (["--log", "user=visit"], "--log takes name=value of session, item, time, protocol, sep, session_gap, test_sec"),
    (["--log", "session"], "separated by commas, got 'session'"),
    (["--log", "sep=,"], "--log sep=, says nothing: commas separate what --log takes"),
    (["--log", "session_gap=half an hour"], "--log session_gap is a number of seconds, got 'half an hour'"),
    (["--log", f"{COLUMNS},protocol=mine"], "no protocol 'mine'; known are"),
])
@pytest.mark.parametrize("command", [["data", "stats"], ["train", "--model", "pop"]])
def test_wrong_columns_are_told(command, options, message, log, sbr):
    code, out, err = sbr(*command, "--dataset", log, *options)
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_log_that_is_not_there_is_told(sbr):
    code, _, err = sbr("data", "stats", "--dataset", "nowhere.csv", "--log", COLUMNS)
    assert (code, err) == (1, "error: nowhere.csv: no such file\n")
    code, _, err = sbr("data", "stats", "--dataset", "nowhere.csv")
    assert code == 1 and "no dataset, folder or file 'nowhere.csv'" in err
