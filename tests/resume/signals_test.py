import os
import signal
import threading

import pytest

from keras_switch.resume.signals import StopSignals


class Trainer:
    """Has a `fit` that does what it is given."""

    def fit(self, do):
        return do()


@pytest.fixture
def heard():
    """Signals that reach the handler from before."""
    heard, before = [], {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda n, _: heard.append(n))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_fit_is_noted(number, heard):
    trainer, signals = Trainer(), StopSignals()
    signals.install(trainer)
    trainer.fit(lambda: send(number))
    assert signals.received == number and not heard
    assert not signals.due
    signals.poll(3)
    assert signals.due
    signals.restore()
    send(number)
    assert heard == [number]
    with pytest.raises(SystemExit) as exit:
        signals.exit_if_received()
    assert exit.value.code == 75
    signals.exit_if_received()


def test_outside_fit_a_signal_does_what_it_did(heard):
    """`fit` ended by an error, and nobody was told."""
    trainer, signals = Trainer(), StopSignals()
    signals.install(trainer)
    Trainer().fit(lambda: send(signal.SIGTERM))  # another model
    assert heard == [signal.SIGTERM] and signals.received is None
    send(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_a_second_interrupt_gets_through_but_not_a_second_sigterm(heard):
    trainer, signals = Trainer(), StopSignals()
    signals.install(trainer)
    trainer.fit(lambda: (send(signal.SIGTERM), send(signal.SIGTERM)))
    assert not heard
    trainer.fit(lambda: (send(signal.SIGINT), send(signal.SIGINT)))
    assert heard == [signal.SIGINT]


@pytest.mark.parametrize("same", ["nothing", "model", "both"])
def test_a_fit_that_failed_leaves_no_handler_behind(same, heard):
    first, failed = StopSignals(), Trainer()
    first.install(failed)  # and nobody calls restore
    trainer = Trainer() if same == "nothing" else failed
    second = first if same == "both" else StopSignals()

    def go():
        second.install(trainer)
        send(signal.SIGTERM)

    trainer.fit(go)
    assert second.received == signal.SIGTERM and not heard
    second.restore()
    assert first._model is None
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_fit_inside_of_another_leaves_it_its_handler(heard):
    outer, inner = StopSignals(), StopSignals()
    trainer = Trainer()

    def within():
        outer.install(trainer)
        inner.install(Trainer())
        inner.restore()
        send(signal.SIGTERM)

    trainer.fit(within)
    assert outer.received == signal.SIGTERM and not heard
    outer.restore()


def test_other_threads_get_no_signals(heard):
    signals = StopSignals()
    thread = threading.Thread(target=lambda: signals.install(Trainer()))
    thread.start()
    thread.join()
    signals.restore()
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
