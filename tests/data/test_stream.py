"""Streamed batches: their order, which is that of (seed, step) alone, broken files, and worker processes."""

import errno
import functools
import gc
import io
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from orc_jax.data import checks, decode, folder, stream
from orc_jax.data.batches import batch_indices
from orc_jax.errors import UserError

SIZE = 16


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((50 + seed, 40), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def records(tmp_path):
    """22 images whose labels are their numbers; none of the tests looks at a class."""
    for i in range(22):
        (tmp_path / f"{i:02d}.jpg").write_bytes(jpeg(i))
    return folder.Records(str(tmp_path), np.array([f"{i:02d}.jpg".encode() for i in range(22)]), np.arange(22))


def training(records, num_steps=6, **fields):
    fields = {"seed": 0, "batch_size": 8, "first_step": 0, "skip_corrupt": False} | fields
    augment = functools.partial(decode.random_resized_crop, size=SIZE, area=(0.3, 1.0), flip=True)
    return stream.TrainExamples(records, num_steps=num_steps, augment=augment, **fields)


def evaluation(records, batch_size=8, **fields):
    center = functools.partial(decode.resize_and_center_crop, size=SIZE, crop=0.875)
    return stream.EvalExamples(records, batch_size, center, SIZE, **{"skip_corrupt": False} | fields)


def read(source, num_workers=0):
    """All batches of a process."""
    with stream.batches(source, source.batch_size // source.process_count, num_workers) as batches:
        return list(batches)


def stacked(batches, name):
    return np.stack([batch[name] for batch in batches])


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def test_training_batches(records):
    batches = read(training(records))
    images, labels = stacked(batches, "image"), stacked(batches, "label")
    assert images.shape == (6, 8, SIZE, SIZE, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [batch_indices(0, step, 8, 22) for step in range(6)])
    epochs = labels.reshape(-1)[:44].reshape(2, 22)
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs), "each example once, in epochs cut across batches"
    same = images.reshape(48, -1)[labels.reshape(-1) == 3][:2]
    assert not np.array_equal(*same), "cropped anew in every epoch"
    assert_same(read(training(records)), batches)
    others = read(training(records, seed=1))
    assert not np.array_equal(stacked(others, "label"), labels)


def test_the_crop_depends_on_seed_and_position(records):
    one = folder.Records(records.root, records.paths[:1], records.labels[:1])
    crops = [training(one, seed=seed)[j]["image"] for seed in (0, 1) for j in range(4)]
    assert len({crop.tobytes() for crop in crops}) == 8


def test_an_image_may_come_in_several_views(records):
    one, three = (training(records, views=views)[5]["image"] for views in (1, 3))
    np.testing.assert_array_equal(three[0], one)
    assert three.shape == (3, *one.shape)
    assert len({view.tobytes() for view in three}) == 3


def test_a_run_goes_on_from_any_step(records):
    assert_same(read(training(records, first_step=4)), read(training(records))[4:])
    assert read(training(records, first_step=6)) == []


@pytest.mark.parametrize("make", [training, evaluation])
def test_the_shards_of_processes_make_up_the_global_batch(records, make):
    shards = [read(make(records, process_index=i, process_count=2)) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shards, strict=True)]
    assert_same(joined, read(make(records)))


def test_evaluation_sees_every_example_once(records):
    batches = read(evaluation(records))
    labels, weights = stacked(batches, "label"), stacked(batches, "weight")
    assert labels.shape == (3, 8) and weights.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels[weights == 1], np.arange(22))
    np.testing.assert_array_equal(weights[2], [1] * 6 + [0] * 2)
    assert not stacked(batches, "image")[weights == 0].any()


def test_a_file_that_breaks_during_training(records, capfd):
    whole = read(training(records))
    path = records.name(5)
    with open(path, "r+b") as file:
        file.truncate(400)
    for source in (training(records), evaluation(records)):
        with pytest.raises(UserError, match=f"^{path} cannot be decoded: .*config.stream.skip_corrupt=True"):
            read(source)
    capfd.readouterr()
    batches = read(training(records, skip_corrupt=True))
    assert capfd.readouterr().err.count(f"{path} cannot be decoded") == 1
    before, after = stacked(whole, "label"), stacked(batches, "label")
    np.testing.assert_array_equal(after, np.where(before == 5, 6, before))
    kept = before != 5
    np.testing.assert_array_equal(stacked(batches, "image")[kept], stacked(whole, "image")[kept])
    evaluated = read(evaluation(records, skip_corrupt=True))
    assert stacked(evaluated, "weight").sum() == 21 and evaluated[0]["weight"][5] == 0
    os.remove(path)
    with pytest.raises(UserError, match=f"^{path} cannot be read: No such file"):
        read(training(records, skip_corrupt=True))


def test_nothing_left_to_take_instead(records):
    for i in range(2):
        open(records.name(i), "w").close()
    two = folder.Records(records.root, records.paths[:2], records.labels[:2])
    with pytest.raises(UserError, match="none of the 2 training images can be decoded"):
        read(training(two, skip_corrupt=True))


def wait_until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def no_workers():
    return not multiprocessing.active_children()


def no_shared_memory():
    return not any(type(x).__name__ == "SharedMemoryArray" for x in gc.get_objects())


def test_workers_change_nothing_and_leave_nothing(records):
    for source, num_workers in ((training(records), 2), (evaluation(records), 1)):
        assert_same(read(source, num_workers), read(source))
        wait_until(no_workers)
        wait_until(no_shared_memory)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "the memory may have run out, of which fewer config.stream.num_workers need less"),
        (signal.SIGBUS, "/dev/shm may be full"),
        (signal.SIGSEGV, "what it has printed may tell why"),
    ],
)
def test_a_worker_that_was_killed(records, number, reason):
    """As the kernel does for want of memory; it must not leave the run hanging."""
    with stream.batches(training(records, num_steps=10**6), 8, 2) as batches:
        next(batches), next(batches)  # one of each worker
        os.kill(multiprocessing.active_children()[0].pid, number)
        with pytest.raises(UserError, match=f"worker process .* exit code -{int(number)}: {reason}"):
            for _ in range(100):
                next(batches)
    wait_until(no_workers)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EMFILE, "set ulimit -n 4096"), (errno.ENOSPC, "/dev/shm may be full: give the container more")],
)
def test_what_the_system_lacks_is_no_disk(records, monkeypatch, number, advice):
    """No semaphores, no shared memory, no more open files: neither the images nor the workdir are at fault."""

    def lacking(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.synchronize.SemLock.__init__", lacking)
        with pytest.raises(UserError, match=f"from the processes that read them: {os.strerror(number)}: .*{advice}"):
            read(training(records), 1)
    monkeypatch.setattr("builtins.open", lacking)
    with pytest.raises(UserError, match=f"{records.name(2)} cannot be read: {os.strerror(number)}"):
        stream._example(records, 2, True, bytes)
    if number == errno.EMFILE:  # which is no defect of a file
        with pytest.raises(UserError, match=f"images cannot be looked at: {os.strerror(number)}.*{advice}"):
            checks.look(records.path(2))


def test_errors_of_workers_arrive(records):
    path = records.name(5)
    open(path, "w").close()
    with pytest.raises(UserError, match=f"^{path} cannot be decoded"):
        read(training(records), 1)
