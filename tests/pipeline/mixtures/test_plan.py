"""The plan: pure, random-access, world-size-free arithmetic. Its distribution: test_statistics.py."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.mixtures.compositions import Mixed, WithGeneric
from pipeline.mixtures.meta_distributions import Dirichlet, Fixed, Given, Sparse, window_shares
from pipeline.mixtures.neighbourhoods import Neighbourhood
from pipeline.mixtures.plan import MixturePlan, _domains
from tests.extras import missing

K = 4096
GOLDEN_SUPPORT = [[[3, 4], [3, 4]], [[2, 3], [0, 3]]]
GOLDEN_DOMAIN = [[3, 3, 4, 3], [2, 2, 3, 0]]
GOLDEN_ROW = [[1, 1, 6, 0], [3, 2, 0, 1]]
GOLDEN_DIGESTS = {
    "sparse": "20c6d2bdf469dce49775f55e1131338b8ceedc4a1087b26aba64fe6bda30c3d7",
    "by size": "56d6f2d79d1a9524e9b6226318b64cc4ec643f4c007938451a67550b74f605b8",
    "uniform": "2c76efad1a2bab060d464f6112d4a1005d9f1b70562f44ddb771c815a4116112",
    "dirichlet": "23f3b21193fed945667182746a585494b03adcda743fe65563c137bcaf459eaa",
    "around the generic one": "3f20dd92ca5925201c4952d1108da4ce8df6bf34ac8d59596ecf67f40a6673d6",
    "fixed": "53b0eae4c1416a07db42ff5ef7e5fe35c8574c6f6ecfc86dfdd17dea31ba9194",
    "given": "a504586f29ff9eea19a17208501f604ff4b6fb5b3d633eb0fc57c781bacaa096",
    "neighbourhood": "80789715d8cf526f8b6a0b25e5c66a884522aa91be5bfc42e99790a17adce23a",
    "with generic": "3de717c199f5c0449015d6e2c0db937a02a57b40626092d2ecc80496983dc41e",
    "mixed": "c16adeabdc0b3105143b5c3ea051dfc27a54a0cc5945d6b66281068191633221",
}


def windows(seed=0):
    sizes = np.random.Generator(np.random.PCG64(seed)).integers(1, 1000, K)
    sizes[::7] = 0
    return sizes


def centroids():
    """Of unit norm; the empty domains have none."""
    centroids_KD = np.random.Generator(np.random.PCG64(1)).integers(-50, 51, (K, 16)).astype(np.float32)
    centroids_KD /= np.sqrt(np.square(centroids_KD).sum(1, keepdims=True))
    centroids_KD[::7] = np.nan
    return centroids_KD


def plan(law=None, **settings):
    defaults = dict(seed=5, batch_size=32, mixtures_per_step=4)
    return MixturePlan(windows(), law or Sparse(support_size=4), **defaults | settings)


LAWS = {
    "sparse": Sparse(support_size=4),
    "by size": Sparse(support_size=4, by_size=True),
    "uniform": Sparse(support_size=int((windows() > 0).sum())),
    "dirichlet": Dirichlet(concentration=0.3, support_size=6),
    "around the generic one": Dirichlet(concentration=0.05, by_size=True),
    "fixed": Fixed(window_shares(windows())),
    "given": Given(lambda number: (np.array([9 + number % 3, 1]), np.array([0.75, 0.25])), name="test"),
    "neighbourhood": Neighbourhood(centroids()),
    "with generic": WithGeneric(law=Sparse(support_size=4), share="triangular"),
    "mixed": Mixed(
        (
            (0.5, Sparse(support_size=4, by_size=True)),
            (1.0, Given(lambda number: (np.array([9 + number % 3]), np.ones(1)), name="test")),
            (0.5, WithGeneric(law=Neighbourhood(centroids(), [0.1]), share="uniform")),
        )
    ),
}


def digest(steps):
    found = hashlib.sha256()
    for array in (steps.support_TWs, steps.weights_TWs, steps.domain_TB, steps.row_TB):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def test_golden_vectors():
    """Frozen: a change of NumPy or of the arithmetic would silently give a resumed run other data."""
    small = MixturePlan(
        np.array([3, 0, 5, 2, 9]), Sparse(support_size=2), seed=11, batch_size=4, mixtures_per_step=2
    ).steps(7, 9)
    assert small.support_TWs.tolist() == GOLDEN_SUPPORT
    assert small.domain_TB.tolist() == GOLDEN_DOMAIN
    assert small.row_TB.tolist() == GOLDEN_ROW


@pytest.mark.parametrize("law", LAWS)
def test_golden_digest_of_each_law(law):
    assert digest(plan(LAWS[law]).steps(10**6, 10**6 + 3)) == GOLDEN_DIGESTS[law]


@pytest.mark.parametrize("law", LAWS)
def test_a_window_of_steps_is_the_same_as_each_step_alone(law):
    made = plan(LAWS[law])
    whole = made.steps(90, 120)
    for step in (90, 101, 119):
        one = made.steps(step, step + 1)
        assert np.array_equal(one.domain_TB[0], whole.domain_TB[step - 90])
        assert np.array_equal(one.row_TB[0], whole.row_TB[step - 90])
        assert np.array_equal(one.domain_weights(step, K), whole.domain_weights(step, K))


@pytest.mark.parametrize("law", LAWS)
def test_some_slots_alone_are_those_of_the_whole_step(law):
    made = plan(LAWS[law])
    whole = made.steps(5, 8)
    for slots in (slice(0, 4), slice(6, 19), slice(31, 32)):
        some = made.steps(5, 8, slots)
        assert np.array_equal(some.domain_TB, whole.domain_TB[:, slots])
        assert np.array_equal(some.row_TB, whole.row_TB[:, slots])


@pytest.mark.parametrize("law", LAWS)
def test_every_law_gives_weights_and_draws_only_what_has_some(law):
    steps = plan(LAWS[law]).steps(0, 50)
    mixture = plan().mixture_of_slot()
    for step in range(50):
        dense_WK = steps.domain_weights(step, K)
        assert (dense_WK >= 0).all() and (windows()[dense_WK.any(0)] > 0).all()
        np.testing.assert_allclose(dense_WK.sum(1), 1, atol=1e-12)
        assert (dense_WK[mixture, steps.domain_TB[step]] > 0).all()
    assert ((steps.row_TB >= 0) & (steps.row_TB < windows()[steps.domain_TB])).all()


@pytest.mark.parametrize("by_size", [False, True])
def test_support_is_exact_and_distinct(by_size):
    steps = plan(Sparse(support_size=16, by_size=by_size)).steps(0, 200)
    assert (np.diff(steps.support_TWs, axis=-1) > 0).all()
    assert ((steps.domain_weights(3, K) > 0).sum(1) == 16).all()


def test_a_point_on_the_very_end_is_no_domain_without_weight():
    """The largest uniform number there is, times a sum just above or below 1, rounds onto the sum."""
    support, mixture = np.array([[[4, 7, 7]]]), np.zeros(2, int)
    for total in np.nextafter(1, [0, 2]).tolist() + [1 / 3]:
        weights = np.array([[[total / 2, total / 2, 0]]])
        assert _domains(support, weights, np.full((1, 2), 1 - 2**-53), mixture).tolist() == [[7, 7]]
        assert _domains(support[..., ::-1], weights[..., ::-1], np.zeros((1, 2)), mixture).tolist() == [
            [7, 7]
        ]


@pytest.mark.parametrize(("count", "stop", "expected"), [(6, 100, 6), (8, 100, 8), (50, 3, 12)])
def test_the_first_mixtures_are_those_of_the_first_steps(count, stop, expected):
    found = plan().first_mixtures(count, stop=stop)
    steps = plan().steps(0, 3)
    whole = np.concatenate([steps.domain_weights(step, K) for step in range(3)])
    assert np.array_equal(found, whole[:expected])


def test_digest_names_the_data():
    assert plan().digest == plan().digest
    for change in (
        {"seed": 6},
        {"batch_size": 64},
        {"law": Sparse(support_size=5)},
        {"law": Sparse(support_size=4, by_size=True)},
        {"law": Dirichlet(support_size=4)},
        {"law": WithGeneric(law=Sparse(support_size=4), share=0.5)},
        {"law": WithGeneric(law=Sparse(support_size=4), share="uniform")},
        {"law": Mixed(((1.0, Sparse(support_size=4)),))},
        {"store_digest": "x"},
        {"sequence_length": 9},
    ):
        assert plan(**change).digest != plan().digest


def given(support, weights):
    return Given(lambda number: (np.array(support), np.array(weights)), name="f")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 30}, "batch_size 30 is not a positive multiple of mixtures_per_step 4"),
        ({"law": Sparse(support_size=0)}, "support_size is 0"),
        ({"law": Sparse(support_size=4096)}, "between 1 and the 3510 domains"),
        ({"law": Dirichlet(support_size=4096)}, "between 1 and the 3510 domains"),
        ({"law": Sparse(support_size=300)}, "at most 256, or all 3510"),
        ({"law": Fixed(np.ones(3) / 3)}, "3 domain weights for 4096 domains"),
        ({"law": Fixed(np.eye(K)[0])}, "domain 0 has weight 1 but no whole window"),
        ({"law": Fixed([0.5, 0.5])}, "2 domain weights for 4096 domains"),
        ({"seed": -1}, r"seed is -1; it must be from 0 to 2\^64 - 1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"law": Fixed(np.full(K, np.nan))}, "domain 0 has weight nan"),
        ({"law": Fixed(np.eye(K)[1] * 2 - np.eye(K)[2])}, "domain 2 has weight -1"),
        ({"law": Fixed(np.eye(K)[1] * 0.9)}, "sum to 0.9, not to 1"),
        ({"law": given([1, 2], [1.0])}, r"mixture 0 of f: \(2,\) domains and \(1,\) weights"),
        ({"law": given([1, 1], [0.5, 0.5])}, "domain 1 occurs twice"),
        ({"law": given([1, 5000], [0.5, 0.5])}, "numbers from 0 to 4095"),
        ({"law": given([1, 2], [0.5, np.inf])}, "domain 2 has weight inf"),
        ({"law": given([], [])}, "give one for each"),
    ],
)
def test_impossible_plans_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(**settings).steps(0, 1)


def test_a_store_without_a_whole_window_is_refused():
    with pytest.raises(ValueError, match="every domain is empty"):
        MixturePlan(np.zeros(4, int), Sparse(support_size=1), seed=0, batch_size=1)


@pytest.mark.long
@pytest.mark.parametrize("version", ["2.0.2", "2.2.6"])
def test_golden_vectors_on_another_numpy(tmp_path, version):
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", "numpy"]
    pip += ["--target", str(tmp_path), f"numpy=={version}"]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        missing(
            f"NumPy {version}", f"a package index that has it ({installed.stderr.strip().splitlines()[-1]})"
        )
    test = f"import numpy; assert numpy.__version__ == '{version}'; import pytest; "
    test += f"raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'golden', {__file__!r}]))"
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", test],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"{1 + len(LAWS)} passed" in done.stdout, done.stdout + done.stderr
