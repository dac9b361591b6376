"""Machines by name."""

import pytest

from medkor_jax.plan.topology import AUTO, GIB, parse_topology


@pytest.mark.parametrize(
    "name, chips, gib",
    [("v5e:4x4", 16, 15.75), ("v5p:2x2x2", 8, 95.73), ("cpu:8x4GB", 8, 4e9 / GIB)],
)
def test_a_name_says_how_many_chips_of_what_memory(name, chips, gib):
    topology = parse_topology(name)
    assert topology.n_chips == chips
    assert topology.chip.memory_bytes / GIB == pytest.approx(gib)


def test_a_process_does_not_have_all_of_a_gpus_memory():
    assert 0.9 * 80e9 < parse_topology("gpu:8x80GB").chip.memory_bytes < 80e9


@pytest.mark.parametrize(
    "name, links",
    [("v5e:1x1", 1), ("v5e:2x2", 2), ("v5e:4x4", 2), ("v5e:16x16", 4), ("v5p:4x4x4", 6)],
)
def test_the_chip_with_fewest_neighbours_bounds_the_interconnect(name, links):
    topology = parse_topology(name)
    assert topology.ici_bytes_per_s == links * topology.chip.link_bytes_per_s


@pytest.mark.parametrize("name", ["v5e", "v7:2x2", "gpu:8", "gpu:8x81GB", "4x4", "cpu:x"])
def test_what_is_no_machine_is_refused_with_what_is_one(name):
    with pytest.raises(ValueError, match="expected"):
        parse_topology(name)


def test_all_that_auto_tries_are_machines():
    assert len({parse_topology(name) for name in AUTO}) == len(AUTO)
