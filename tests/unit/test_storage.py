"""How much visitors can store on this machine's disk."""

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from support.programs import ROOT
from vllm_space import errors
from vllm_space.storage import MIN_COST, MIN_FREE, QUOTA, Storage

Usage = namedtuple("Usage", "total used free")


def test_each_visitor_has_a_quota(tmp_path):
    files = Storage(tmp_path)
    files.reserve("alice", QUOTA - MIN_COST)
    with pytest.raises(errors.Rejected, match="500 MiB for today"):
        files.reserve("alice", 2 * MIN_COST)
    files.reserve("alice", MIN_COST)  # what did not fit is not counted
    files.reserve("bob", QUOTA)


def test_many_tiny_files_are_limited_too(tmp_path):
    files = Storage(tmp_path)
    for _ in range(QUOTA // MIN_COST):
        files.reserve("alice", 0)
    with pytest.raises(errors.Rejected):
        files.reserve("alice", 0)


def test_some_disk_space_stays_free(tmp_path, monkeypatch):
    usage = Usage(2 * MIN_FREE, 0, MIN_FREE + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    files = Storage(tmp_path)
    files.reserve("alice", 100)
    with pytest.raises(errors.Rejected, match="disk is almost full"):
        files.reserve("bob", 101)


PROGRAM = """
import os, signal, sys
from vllm_space.storage import make_private_folder
folder = make_private_folder()
open(folder + "/file", "w").close()
print(folder, oct(os.stat(folder).st_mode)[-3:], flush=True)
if sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["killed"], 143)])
def test_make_private_folder_ends_with_its_process(arguments, code):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    folder, mode = done.stdout.split()
    assert (done.returncode, mode) == (code, "700"), done.stderr
    assert not Path(folder).exists()
