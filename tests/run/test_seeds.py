from medkor_jax.run.seeds import seed_of


def test_seeds_depend_on_every_part():
    assert len({seed_of(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), ("a", 0))}) == 4
    assert 0 <= seed_of(0, "a") == seed_of(0, "a") < 2**31
