"""Which stages run, and that nothing that is said is ignored."""

import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.curate.settings import chosen_stages, group, refuse_ignored, refuse_other_methods, settle
from dinoforge.curate.table import CURATIONS


def stages(**words):
    config, given = settle({"pool": "p", **words})
    names = chosen_stages(config)
    refuse_ignored(config, given, names)
    return names


def test_stages_by_what_is_given():
    assert stages() == ["filters", "exact", "hash", "pairs", "copies"]
    assert stages(seeds="s") == ["filters", "exact", "hash", "pairs", "copies", "embedding", "retrieval"]
    assert stages(seeds="s", keep_out="k")[5] == "leaks"
    assert stages(**{"balance.levels": "[9,3]", "balance.images": "5"})[-1] == "balance"
    assert stages(**{"safety.hashes.file": "h"})[:3] == ["filters", "safety", "exact"]
    every = {"safety.hashes.file": "h", "balance.levels": "[9,3]", "balance.images": "5"}
    assert stages(seeds="s", keep_out="k", **every) == list(CURATIONS)


def test_chosen_ones_run_in_their_order_with_what_they_need():
    assert stages(seeds="s", stages="retrieval,exact") == ["exact", "embedding", "retrieval"]
    assert stages(keep_out="k", stages="leaks") == ["pairs", "leaks"]


def test_words_become_settings():
    config, given = settle(
        {"pool": "p", "seeds": "a, b", "retrieve": "samples", "balance.levels": "[9,3]", "balance.images": "2k"}
    )
    assert config.seeds == ("a", "b")
    assert group(config, "retrieval").method == "samples"
    assert [level.clusters for level in config.balance.levels] == [9, 3]
    assert config.balance.images == 2000
    assert given == {"pool", "seeds", "retrieval.method", "balance.levels", "balance.images"}
    whole, _ = settle({"pool": "p", "balance.levels": [{"clusters": 4, "nearest": 3}], "balance.images": 7})
    assert whole.balance.levels[0].nearest == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"stages": "filter"}, "Unknown stage 'filter'. Did you mean 'filters'"),
        ({"stages": ","}, "stages= is empty"),
        ({"seeds": " "}, "seeds= is empty; leave it out, or name images"),
        ({"stages": "leaks"}, "stages= has leaks, but keep_out= names no evaluation images"),
        ({"stages": "retrieval"}, "stages= has retrieval, but seeds= names no images"),
        ({"stages": "balance"}, "stages= has balance, but balance.images and balance.levels are not given"),
        ({"stages": "exact", "copies.threshold": "0.9"}, "copies.threshold has no effect: stages= leaves out copies"),
        ({"stages": "exact", "pairs.candidate": "0.5"}, "pairs.candidate has no effect: stages= leaves out pairs"),
        ({"leaks.threshold": "0.9"}, "leaks.threshold has no effect: keep_out= names no evaluation images"),
        ({"retrieve": "samples"}, "retrieval.method has no effect: seeds= names no images"),
        ({"stages": "exact", "keep_out": "k"}, "keep_out=k has no effect: stages= leaves out leaks"),
        ({"stages": "exact", "seeds": "s"}, "seeds= has no effect"),
        ({"include_seeds": "true"}, "include_seeds=true has no effect"),
        ({"stages": "safety"}, "stages= has safety, but no filter for safety is chosen (safety.NAME"),
        ({"stages": "exact", "safety.hashes.file": "h"}, "safety.hashes.file has no effect: stages= leaves out safety"),
        ({"safety.hashes.fil": "h"}, "Unknown setting 'safety.hashes.fil'. Did you mean 'safety.hashes.file'"),
        ({"safety.model.file": "m"}, "safety.model.threshold is required and was not given"),
        ({"safety.domains": "d"}, "safety.domains is a group of settings, not a value; got 'd'. Set one of: safety.domains.file"),
        ({"backbone": "b"}, "backbone=b has no effect: no stage that runs needs embeddings"),
        ({"retrieve": "all", "retrieval.method": "samples"}, "retrieve and retrieval.method are the same setting"),
        ({"retrieve": "nearest"}, "retrieval.method must be one of 'auto', 'samples', 'clusters' or 'all'; got 'nearest'"),
        ({"copies.threshold": "1"}, "copies.threshold must be below 1; got 1"),
        ({"copies.threshold": "-0.1"}, "copies.threshold must be at least 0; got -0.1"),
        ({"leaks.threshold": "1.5"}, "leaks.threshold must be below 1; got 1.5"),
        ({"leaks.threshold": "high"}, "leaks.threshold takes a number; got 'high'"),
        ({"pairs.candidate": "2"}, "pairs.candidate must be below 1; got 2"),
        ({"filters.least_detial": "1"}, "Unknown setting 'filters.least_detial'. Did you mean 'filters.least_detail'"),
        ({"balance.levels": "[9]"}, "balance.images is required and was not given"),
        ({"balance.levels": "[]", "balance.images": "5"}, "balance.levels"),
        ({"balance.levels": "[0]", "balance.images": "5"}, "balance.levels.0.clusters must be at least 1; got 0"),
        ({"seeds": "s", "retrieval.neighbours": "0"}, "retrieval.neighbours must be at least 1; got 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(words, message):
    with pytest.raises(ConfigError) as error:
        stages(**words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_a_way_that_no_seed_set_takes():
    refuse_other_methods({"retrieval.neighbours", "retrieval.cap", "pool"}, ["samples", "clusters"])
    refuse_other_methods({"retrieval.method"}, ["all"])
    with pytest.raises(ConfigError, match=r"retrieval\.cap has no effect: every seed set is retrieved for by samples"):
        refuse_other_methods({"retrieval.cap"}, ["samples", "samples"])
    with pytest.raises(ConfigError, match=r"retrieval\.search\.recall has no effect"):
        refuse_other_methods({"retrieval.search.recall"}, ["clusters"])
