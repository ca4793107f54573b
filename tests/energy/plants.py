"""Random models of two-stage adaptation for property tests, in numbers that floating point adds without rounding."""

from hypothesis import strategies as st

from layerprobe.energy import MeasuredRounds, TwoStage, energy_curve

EXAMPLE = {
    "pue": 1.5,
    "joule_per_batch_center": 2.0,
    "joule_per_batch_device": 0.5,
    "second_order_factor": 3.0,
    "uplink_bit_per_joule": 100.0,
    "downlink_bit_per_joule": 50.0,
    "sidelink_bit_per_joule": 200.0,
    "parameters_down": 100,
    "parameters_exchanged": 10,
    "devices_per_task": 4,
    "neighbours": 2,
    "support_batches": 1,
    "query_batches": 2,
    "device_batches": 3,
    "upload_bits_per_device": 1000,
    "resend_data": False,
    "meta_tasks": 2,
}
LINKS = ("uplink_bit_per_joule", "downlink_bit_per_joule", "sidelink_bit_per_joule")


def example(**changes) -> TwoStage:
    return TwoStage(**{**EXAMPLE, **changes})


counts = st.integers(0, 6)
efficiencies = st.integers(-6, 6).map(lambda power: 2.0**power)


@st.composite
def arguments(draw, n_tasks=3):
    """Arguments of `TwoStage` for `n_tasks` tasks, all given per task."""
    devices = draw(st.lists(st.integers(1, 5), min_size=n_tasks, max_size=n_tasks))
    per_task = st.lists(counts, min_size=n_tasks, max_size=n_tasks)
    return {
        "pue": draw(st.sampled_from([1.0, 1.25, 2.0])),
        "joule_per_batch_center": draw(counts),
        "joule_per_batch_device": draw(per_task),
        "second_order_factor": draw(st.sampled_from([1.0, 1.5, 3.0])),
        **{link: draw(efficiencies) for link in LINKS},
        "parameters_down": draw(counts),
        "parameters_exchanged": draw(counts),
        "devices_per_task": devices,
        "neighbours": [draw(st.integers(0, held - 1)) for held in devices],
        "support_batches": draw(counts),
        "query_batches": draw(counts),
        "device_batches": draw(per_task),
        "upload_bits_per_device": draw(per_task),
        "resend_data": draw(st.booleans()),
        "meta_tasks": sorted(draw(st.sets(st.integers(0, n_tasks - 1), min_size=1))),
    }


@st.composite
def measurements(draw, n_tasks=3, nonincreasing=False):
    """Rounds of every task by number of meta-training rounds, 0 among them; plain numbers (beartype draws at random)."""
    tried = sorted({0, *draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))})
    rounds = [draw(st.lists(st.integers(0, 30), min_size=len(tried), max_size=len(tried))) for _ in range(n_tasks)]
    if nonincreasing:
        rounds = [sorted(of_task, reverse=True) for of_task in rounds]
    return dict(zip(tried, zip(*rounds, strict=True), strict=True))


def curve(model, measured):
    return energy_curve(model, [MeasuredRounds(t0, rounds) for t0, rounds in measured.items()])
