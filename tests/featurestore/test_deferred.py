from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGE = """
import importlib

gift = 7

def __getattr__(name):
    return importlib.import_module("heavy." + name)
"""
THING = """
from heavy import gift, parts
from heavy.parts import double
import heavy.parts
from json import dumps

def late():
    from heavy.parts import double
    return double
"""


def python(script, folder=None):
    """What a fresh interpreter prints, in the folder."""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path):
    """A package `heavy`, whose `parts` take their time, and a module `thing` that imports them."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "heavy" / "parts.py").write_text("print('loaded')\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "thing.py").write_text(THING)
    return tmp_path


DEFER = "from featurestore.deferred import defer\ndefer('thing', 'heavy.parts')\n"


@pytest.mark.parametrize("use", ["parts.double(4)", "double(4)", "heavy.parts.double(4)", "late()(4)"])
def test_what_is_deferred_is_imported_when_it_is_used(folder, use):
    script = DEFER + f"import thing\nprint('imported', thing.gift)\nprint(thing.{use})"
    assert python(script, folder) == ["imported 7", "loaded", "8"]


def test_what_is_there_already_is_not_deferred(folder):
    script = "import heavy.parts\n" + DEFER + "import thing\nprint(thing.double is heavy.parts.double)"
    assert python(script, folder) == ["loaded", "True"]


def test_others_import_as_ever(folder):
    script = DEFER + "import thing\nprint('imported')\nfrom heavy.parts import double\nprint(double.__name__)"
    assert python(script, folder) == ["imported", "loaded", "double"]


def test_a_module_keeps_its_source_and_its_tracebacks(folder):
    script = DEFER + "import inspect, thing\nprint(inspect.getsource(thing.late), thing.__file__)"
    assert python(script, folder)[::2] == ["def late():", "    return double"]
    assert python(script, folder)[-1].strip() == str(folder / "thing.py")


def test_defining_a_service_loads_neither_scipys_heavy_parts_nor_an_http_client():
    script = "import onceflow.runtime, examples.flights.features, sys; print(*sys.modules)"
    loaded = set(python(script)[0].split())
    assert {"river.linear_model", "faust.app.base"} <= loaded
    assert loaded.isdisjoint({"scipy.stats", "scipy.special", "scipy.sparse", "scipy.ndimage", "aiohttp"})


RIVER = """
import pkgutil, random, warnings
import river
warnings.simplefilter("ignore")
from importlib import import_module
for module in pkgutil.walk_packages(river.__path__, "river."):
    if not module.name.split(".")[-1].startswith(("test_", "_")):
        try:
            import_module(module.name)
        except ImportError as error:
            print(module.name, error)
from river import drift, linear_model, metrics, naive_bayes, preprocessing, proba, stats, tree
rng = random.Random(3)
many = proba.MultivariateGaussian()
kswin, sgt, ad = drift.KSWIN(seed=1), tree.SGTClassifier(grace_period=20), linear_model.AdPredictor()
lda, auc, means, mean = preprocessing.LDA(2, 30, seed=1), metrics.RollingROCAUC(), metrics.GeometricMean(), proba.Beta()
chi, bayes = stats.PearsonCorr(), naive_bayes.ComplementNB()
for i in range(200):
    x, y = {"a": rng.random(), "b": rng.random()}, rng.random() < 0.4
    many.update(x)
    kswin.update(x["a"] + (i > 100))
    sgt.learn_one(x, y)
    ad.learn_one(x, y)
    lda.learn_transform_one({"one": 1, f"word{i % 7}": 2})
    auc.update(y, x["a"])
    means.update(y, x["a"] > 0.5)
    mean.update(y)
    bayes.learn_one({"one": 1, f"word{i % 7}": 2}, y)
x = {"a": 0.3, "b": 0.6}
print(many(x), many.cdf(x), kswin.drift_detected, sgt.predict_proba_one(x), ad.predict_proba_one(x), auc, means)
print(mean.cdf(0.3), mean(0.4), bayes.predict_proba_one({"one": 1, "word3": 1}), lda.nu_1)
"""


def test_river_gives_what_it_gives_without():
    assert python("import learner\n" + RIVER) == python(RIVER)
