import mutated_media


def test_damaged_files_are_decoded_or_refused():
    found = mutated_media.run(500, seed=1)
    assert not found["failed"]
    assert found["decoded"] + found["refused"] == 500 and min(found["decoded"], found["refused"]) > 50
    assert found["slowest_s"] < 10 * mutated_media.LIMIT_S
