from datetime import UTC, datetime

import numpy as np
import pandas as pd
import torch

from trainer.clock import CLOCK_CHANNELS, clock_table, time_of_week


def test_channels_are_the_harmonics_of_day_and_week() -> None:
    times = pd.date_range("2019-01-01", "2019-04-03", freq="37min17s", tz="UTC")
    found = time_of_week(torch.from_numpy(times.as_unit("ns").asi8.reshape(2, -1).copy()), clock_table()).reshape(
        -1, CLOCK_CHANNELS
    )
    minute_of_day = times.hour * 60 + times.minute
    minute = minute_of_day + 1440 * ((times.day_of_week - datetime(1970, 1, 1, tzinfo=UTC).weekday()) % 7)
    harmonics = [(1440, k) for k in (1, 2, 3, 4)] + [(10080, k) for k in (1, 2, 3)]
    for column, (period, k) in enumerate(harmonics):
        angle = 2 * np.pi * k * np.asarray(minute) / period
        np.testing.assert_allclose(found[:, column], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(found[:, column + CLOCK_CHANNELS // 2], np.cos(angle), atol=1e-6)


def test_before_1970() -> None:
    at = torch.tensor([[-60_000_000_000, -1]])  # the last minute of a week
    assert torch.equal(time_of_week(at, clock_table()), clock_table()[[10079, 10079]][None])
