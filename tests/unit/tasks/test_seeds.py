import hashlib

from openfed.tasks.seeds import derive


def test_a_seed_is_the_first_63_bits_of_a_digest_that_anyone_can_compute() -> None:
    digest = hashlib.sha256(b'[7,3,"one","train"]').hexdigest()
    assert derive(7, 3, "one", "train") == int(digest[:16], 16) >> 1


def test_every_part_and_its_place_matters() -> None:
    seeds = [
        derive(7, 1, "one", "train"),
        derive(8, 1, "one", "train"),
        derive(7, 2, "one", "train"),
        derive(7, 1, "two", "train"),
        derive(7, 1, "one", "validate"),
        derive(7, 1, "on", "etrain"),
        derive(7, "1", "one", "train"),
        derive(7),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
