"""The batch-size finder."""

import threading

import pytest
import torch
from runs import TRAIN, small

from fastvae import training
from fastvae.cli import main
from fastvae.training import BatchSpeed, batch_size, best_batch_size, measure_batch_sizes
from fastvae.training.feed import HostFeed


def speeds(*rates):
    return [BatchSpeed(64 * 2**i, rate, 0) for i, rate in enumerate(rates)]


def test_smallest_batch_near_the_fastest_is_best():
    assert best_batch_size(speeds(10, 20, 39, 40, 38)) == 256
    assert best_batch_size(speeds(10, 20, 36, 40)) == 512
    assert best_batch_size(speeds(7)) == 64


def test_growth_ends_where_two_batches_bring_nothing():
    assert not batch_size._settled(speeds(10, 20))
    assert not batch_size._settled(speeds(10, 20, 20, 22))
    assert batch_size._settled(speeds(10, 20, 20.5, 20.9))


def test_batches_double_until_the_data_set_ends(monkeypatch):
    monkeypatch.setattr(batch_size, "_SECONDS", 0)
    monkeypatch.setattr(batch_size, "_settled", lambda results: False)
    seen = []
    results = measure_batch_sizes(small(accumulate=100, amp="bf16"), device="cpu", report=seen.append)
    # 1,442 images; no batch is smaller than its parts.
    assert [result.batch_size for result in results] == [100, 200, 400, 800]
    assert seen == results
    assert all(result.images_per_second > 0 for result in results)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_end_of_the_memory_is_the_end(monkeypatch, error):
    monkeypatch.setattr(batch_size, "_SECONDS", 0)
    step = batch_size.Stepper.__call__

    def limited(self, number, batch):
        if len(batch) > 128:
            raise error
        return step(self, number, batch)

    monkeypatch.setattr(batch_size.Stepper, "__call__", limited)
    assert [result.batch_size for result in measure_batch_sizes(small())] == [64, 128]
    monkeypatch.setattr(batch_size.Stepper, "__call__", lambda self, number, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_batch_sizes(small())


def test_what_does_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(batch_size, "_SECONDS", 0)
    monkeypatch.setattr(batch_size, "available_bytes", lambda device: 1024)
    assert [result.batch_size for result in measure_batch_sizes(small())] == [64]


def test_rows_are_read_ahead_where_they_stay_on_the_host(monkeypatch):
    monkeypatch.setattr(batch_size, "_SECONDS", 0)
    monkeypatch.setattr(batch_size, "_settled", lambda results: len(results) == 2)
    asked, call = [], HostFeed.__call__

    def ask(feed, index, draw):
        asked.append((len(index), feed._ahead is not None and torch.equal(feed._ahead[0], index)))
        return call(feed, index, draw)

    monkeypatch.setattr(HostFeed, "__call__", ask)
    config = small(accumulate=2)
    assert [result.batch_size for result in measure_batch_sizes(config, device="cpu", data_on="host")] == [64, 128]
    assert asked == [(32, True)] * 8 + [(64, True)] * 8
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastvae-reader")]


def test_command_takes_where_the_data_are(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "measure_batch_sizes", lambda *_, **options: given.update(options) or speeds(7))
    given = {}
    assert main([*TRAIN, "--find-batch-size", "--data-on", "host", "--out", str(tmp_path / "run")]) == 0
    assert given["data_on"] == "host"


def test_command_prints_a_table_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch_size, "_SECONDS", 0)
    assert main([*TRAIN, "--find-batch-size", "--out", str(tmp_path / "run")]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["batch", "images/s", "peak", "MiB"]
    assert [int(row.split()[0]) for row in rows][:2] == [64, 128]
    assert last.startswith("--batch-size ")
    assert not (tmp_path / "run").exists()


def test_parts_need_a_batch_of_as_many_images():
    with pytest.raises(ValueError, match="a batch of 2000 needs as many images, but digits has 1442"):
        measure_batch_sizes(small(accumulate=2000, batch_size=2000))
