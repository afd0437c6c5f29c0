"""ratios.csv: the mixtures of a run, written and read again."""

import pickle

import numpy as np
import polars as pl
import pytest

from pipeline.mixtures.compositions import Mixed, WithGeneric
from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.mixtures.ratios import read_fixed, read_ratios, read_table, write_fixed, write_ratios

WINDOWS = np.array([5, 0, 9, 2, 7, 7])


def make_plan(law, mixtures=2):
    return MixturePlan(WINDOWS, law, seed=3, batch_size=8, mixtures_per_step=mixtures)


@pytest.mark.parametrize("mixtures", [1, 2])
def test_recorded_mixtures_give_the_very_batches_again(tmp_path, mixtures):
    plan = make_plan(Sparse(support_size=3), mixtures)
    write_ratios(plan, 0, 300, tmp_path / "ratios.csv")
    again = make_plan(read_ratios(tmp_path / "ratios.csv"), mixtures)
    first, second = plan.steps(0, 300), again.steps(0, 300)
    assert np.array_equal(first.domain_TB, second.domain_TB) and np.array_equal(first.row_TB, second.row_TB)
    for step in (0, 17, 299):
        assert np.array_equal(first.domain_weights(step, 6), second.domain_weights(step, 6))
    assert again.digest != plan.digest


def test_the_table_has_a_row_a_mixture_and_a_column_a_domain_that_occurs(tmp_path):
    write_ratios(make_plan(Sparse(support_size=1)), 10, 12, tmp_path / "r.csv")
    table = pl.read_csv(tmp_path / "r.csv", schema_overrides={"run": pl.String})
    assert table["run"].to_list() == ["10.0", "10.1", "11.0", "11.1"]
    occurring = np.unique(make_plan(Sparse(support_size=1)).steps(10, 12).support_TWs)
    assert table.columns == ["run", *(f"domain_{domain:04d}" for domain in occurring)]
    assert (table.drop("run").to_numpy().sum(1) == 1).all()
    write_ratios(make_plan(Sparse(support_size=1), mixtures=1), 10, 12, tmp_path / "r.csv")
    assert pl.read_csv(tmp_path / "r.csv")["run"].to_list() == [10, 11]


def test_a_plan_of_recorded_mixtures_travels_without_their_zeros(tmp_path):
    """4,096 domains, 400 mixtures: as a table of all weights it took 13 MB."""
    plan = MixturePlan(np.full(4096, 9), Sparse(support_size=4), seed=0, batch_size=8, mixtures_per_step=4)
    write_ratios(plan, 0, 100, tmp_path / "r.csv")
    again = MixturePlan(
        plan.domains.windows_K, read_ratios(tmp_path / "r.csv"), seed=0, batch_size=8, mixtures_per_step=4
    )
    assert len(pickle.dumps(again)) < len(pickle.dumps(plan)) + 100_000
    again = pickle.loads(pickle.dumps(again))
    assert np.array_equal(plan.steps(0, 100).row_TB, again.steps(0, 100).row_TB)


def test_a_fixed_mixture_is_one_row(tmp_path):
    weights_K = np.array([0.1, 0, 0.7, 0, 0.2, 0])
    write_fixed(weights_K, tmp_path / "h.csv", run="notes")
    assert (tmp_path / "h.csv").read_text() == "run,domain_0000,domain_0002,domain_0004\nnotes,0.1,0.7,0.2\n"
    law = read_fixed(tmp_path / "h.csv", 6)
    assert law.weights_K.tolist() == weights_K.tolist()
    drawn = make_plan(law).steps(0, 200).domain_TB
    assert set(np.unique(drawn)) == {0, 2, 4} and abs((drawn == 2).mean() - 0.7) < 0.05
    with pytest.raises(ValueError, match="h.csv names domain 4; the store has 3 domains"):
        read_fixed(tmp_path / "h.csv", 3)
    write_ratios(make_plan(law, mixtures=1), 0, 2, tmp_path / "two.csv")
    with pytest.raises(ValueError, match="two.csv holds 2 mixtures; a fixed one is one row"):
        read_fixed(tmp_path / "two.csv", 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("domain_0002,domain_0004\n0.5,0.4\n", "the weights sum to 0.9, not to 1"),
        ("domain_0002,domain_0004\n1,\n", "domain 4 has weight nan"),
        ("domain_0001\n1\n", "domain 1 has weight 1 but no whole window"),
    ],
)
def test_a_bad_fixed_mixture_is_refused_by_its_table_s_name(tmp_path, content, message):
    (tmp_path / "h.csv").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/h.csv: {message}"):
        make_plan(Mixed(((1, Sparse(support_size=2)), (1, read_fixed(tmp_path / "h.csv", 6)))))


@pytest.mark.parametrize("of_mixed", [lambda law: law, lambda law: WithGeneric(law=law, share=0.5)])
def test_a_table_in_mixed_has_a_row_for_every_mixture_of_the_run(tmp_path, of_mixed):
    """Else a run would end at the first mixture without one, in the middle: its last step seldom takes this law."""
    write_ratios(make_plan(Sparse(support_size=3)), 0, 99, tmp_path / "r.csv")
    table = read_ratios(tmp_path / "r.csv")
    plan = make_plan(of_mixed(Mixed(((1, table), (99, Sparse(support_size=2))))))
    plan.steps(99, 100)  # of the other law
    with pytest.raises(
        ValueError, match="r.csv holds 198 mixtures; there is no mixture 198.*or give more rows"
    ):
        plan.check_tables(100)
    plan.check_tables(99)


@pytest.mark.parametrize("head", ["run,", "run_id,", "index,run_id,name,", "name,run_id,run,"])
def test_tables_of_olmix_are_read(tmp_path, head):
    cells = {"run": "a,", "run_id": "a,", "index": "7,", "name": "x,"}
    if "run,run" in head or "run_id,run," in head:
        cells["run_id"] = "z,"  # where both are, Olmix takes run
    row = "".join(cells[name] for name in head.rstrip(",").split(","))
    (tmp_path / "r.csv").write_text(f"{head}domain_0002,domain_0004\n{row}0.25,0.75\n")
    runs, domains, weights = read_table(tmp_path / "r.csv")
    assert (runs, domains.tolist(), weights.tolist()) == (["a"], [2, 4], [[0.25, 0.75]])
    assert read_fixed(tmp_path / "r.csv", 6).weights_K.tolist() == [0, 0, 0.25, 0, 0.75, 0]


def test_what_is_trained_on_needs_no_names(tmp_path):
    """The order of the rows is what counts there: no column of them, the same one twice, or an empty one."""
    for content in ("domain_0002\n1\n1\n", "run,domain_0002\na,1\na,1\n", "run,domain_0002\n,1\n,1\n"):
        (tmp_path / "r.csv").write_text(content)
        assert set(make_plan(read_ratios(tmp_path / "r.csv"), mixtures=1).steps(0, 2).domain_TB.flat) == {2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no table of mixtures"),
        ("run,domain_0001\n", "has 0 rows"),
        ("run,loss\n0,1\n", r"\['loss'\] besides"),
        ("run,domain_0001\n0,x\n", "is no table of mixtures"),
        ("run,domain_0002,domain_0000\n0,0.5,\n", "domain 0 has weight nan"),
        (
            "run,domain_0002,domain_0000\na,0.5,0.5\nb,1,0\nc,2,-1\nd,1,0\n",
            r"r.csv, row 3 \(run c\): domain 0 has weight -1",
        ),
        (
            "run,domain_0002,domain_0000\na,0.5,0.5\nb,0,0\nc,1,0\n",
            r"row 2 \(run b\): the weights sum to 0, not to 1",
        ),
        (
            "run,domain_0002,domain_0007\na,1,0\nb,0.5,0.5\nc,1,0\n",
            "row 2: domain 7 has weight 0.5 but no whole window",
        ),
        ("run,domain_0002\n0,0.5\n", "sum to 0.5, not to 1"),
        ("run,domain_0009\n0,1\n", "row 1: domain 9 has weight 1 but no whole window.*there are 6 domains"),
        ("run,domain_0001\n0,1\n", "domain 1 has weight 1 but no whole window"),
        (
            "run,domain_0002\n0,1\n",
            r"holds 1 mixtures; there is no mixture 1\. Train fewer steps, or give more rows",
        ),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, message):
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        make_plan(read_ratios(tmp_path / "r.csv"), mixtures=1).steps(0, 2)
