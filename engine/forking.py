"""A computed prompt forks: its samples begin to decode, each with the prompt's pages and one of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proactor.engine.kv import Copy
from proactor.engine.running import AdmittedRequest, Running
from proactor.engine.step import Decode, SampleId


def line_up_forks(
    running: Running,
    run: AdmittedRequest,
    sampled: Mapping[SampleId, int],
    finished: Collection[SampleId],
) -> list[int]:
    """A prompt is computed: its forks wait to begin, each with its first token. Returns the samples that end
    with it instead.
    """
    request, ended = run.request, []
    running.prefilling.remove(run)
    running.forking.append(run)
    for sample in request.samples:
        key = (request.id, sample)
        if request.max_tokens > 1 and key not in finished:
            run.pending.append((sample, sampled[key]))
        else:
            run.unstarted -= 1
            ended.append(sample)
    running.forget(run, len(ended))
    return ended


def begin_forks(running: Running, max_seqs: int, copies: list[Copy]) -> list[Decode]:
    """Begin as many forks as there are places and pages for, in order of admission; returns them. One at
    least, if nothing else runs.
    """
    started = list[Decode]()
    decoding, spare = len(running.decoding), running.pool.available - running.promised()
    pages = -running.short() if decoding else running.pool.available
    for run in running.forking:
        while run.pending and decoding + len(started) < max_seqs:
            need = running.fork_pages(run.request, run.next_is_last) - running.held_pages(run)
            first, must = running.first_page(run), not (decoding or started or running.prefilling)
            if first > pages or (need > spare and not must):
                break
            spare -= need
            pages -= first
            started.append(_begin(running, run, copies))
    if started:
        running.forking = [run for run in running.forking if run.pending]
        running.decoding.replace(running.decoding.decodes + started)
    return started


def _begin(running: Running, run: AdmittedRequest, copies: list[Copy]) -> Decode:
    """Begin the next fork of a run; the last one takes over the prompt's sequence."""
    assert run.seq is not None
    pool, seq, request, root = running.pool, run.seq, run.request, run.request.root
    sample, token = run.pending.popleft()
    if run.pending:
        seq, copy = pool.fork(run.seq)
        if copy is not None:
            copies.append(copy)
    else:
        run.seq = None
    seq.generated.append(token)
    run.held = False
    run.unstarted -= 1
    run.active += 1
    return Decode(
        id=(request.id, sample),
        request=request,
        seq=seq,
        length=len(request.prompt_ids) + 1,
        input_id=token,
        shared_pages=len(root.prompt_ids) // pool.page_size if root.n > 1 else 0,
        capacity=len(seq.block_table) * pool.page_size,
        left=request.max_tokens - 1,
    )
