//! Axes with round tick values.

use std::time::Duration;

use crate::metric::Unit;
use crate::numbers;

/// Round steps between times, in seconds.
const ROUND_TIMES: [f64; 28] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0,
    604_800.0,
];

/// Ticks of a short logarithmic time axis, in seconds.
const FINE: [f64; 15] = [
    0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0, 10_800.0,
    36_000.0,
];

/// Ticks of a long logarithmic time axis, in seconds.
const DECADES: [f64; 11] =
    [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 36_000.0, 360_000.0, 3_600_000.0];

/// A mapping of values to positions, with ticks.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// Label of the axis.
    pub(crate) name: String,
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<(f64, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
    /// Shares by the logarithm of what remains: the distance from 0 to 90 % equals that from 90 %
    /// to 99 %.
    Tail,
}

impl Axis {
    /// Creates an axis from zero to the next round value above `max`.
    pub(crate) fn linear(name: &str, unit: Unit, max: f64) -> Self {
        let max = if max > 0.0 { max } else { 1.0 };
        let step = step(unit, max, 5.0);
        let high = (max / step - 1e-9).ceil() * step;
        let count = (high / step + 1e-9).floor() as u32;
        let ticks = (0..=count).map(|tick| f64::from(tick) * step);
        let ticks = ticks.map(|value| (value, label(unit, value))).collect();
        Self { name: name.to_owned(), low: 0.0, high, scale: Scale::Linear, ticks }
    }

    /// Creates an axis of the time since the start of a run.
    pub(crate) fn run(duration: f64, ticks: f64) -> Self {
        let high = if duration > 0.0 { duration } else { 1.0 };
        let step = step(Unit::Time, high, ticks);
        let ticks = (0..=(high / step + 1e-9).floor() as u32).map(|tick| f64::from(tick) * step);
        let ticks = ticks.map(|value| (value, label(Unit::Time, value))).collect();
        Self { name: "time since start".to_owned(), low: 0.0, high, scale: Scale::Linear, ticks }
    }

    /// Creates a logarithmic axis of times. Shorter times are drawn at the first tick.
    pub(crate) fn times(name: &str, values: impl Iterator<Item = f64>) -> Self {
        let (mut min, mut max) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0) {
            (min, max) = (min.min(value), max.max(value));
        }
        let low = DECADES
            .iter()
            .rev()
            .copied()
            .find(|tick| *tick <= min.max(0.01))
            .unwrap_or(0.01)
            .min(10.0);
        let low = if max > 0.0 { low } else { 0.01 };
        let high = (max * 1.15).max(low * 100.0);
        let inside =
            |values: &'static [f64]| values.iter().filter(move |tick| (low..=high).contains(*tick));
        let ticks: Vec<_> =
            if inside(&DECADES).count() < 5 { inside(&FINE) } else { inside(&DECADES) }.collect();
        let mut ticks: Vec<_> =
            ticks.into_iter().map(|value| (*value, label(Unit::Time, *value))).collect();
        if let Some((_, first)) = ticks.first_mut() {
            first.insert(0, '≤');
        }
        Self { name: name.to_owned(), low, high, scale: Scale::Logarithmic, ticks }
    }

    /// Creates an axis of percentiles, up to 99.9 %.
    pub(crate) fn percentiles(name: &str) -> Self {
        let ticks = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
        let ticks = ticks.map(|(value, label)| (value, label.to_owned())).to_vec();
        Self { name: name.to_owned(), low: 0.0, high: 0.999, scale: Scale::Tail, ticks }
    }

    /// Creates an axis of ranks, from 1 to `count`.
    pub(crate) fn ranks(name: &str, count: usize) -> Self {
        let high = count.max(2) as f64;
        let step = step(Unit::Count, high, 10.0);
        let round = (1..=(high / step).floor() as u32).map(|tick| f64::from(tick) * step);
        let ticks = std::iter::once(1.0).chain(round.filter(|value| *value > 1.0));
        let ticks = ticks.map(|value| (value, label(Unit::Count, value))).collect();
        Self { name: name.to_owned(), low: 1.0, high, scale: Scale::Linear, ticks }
    }

    /// Creates an axis whose ticks are these values, labeled as they were written.
    pub(crate) fn values(name: &str, values: &[(f64, &str)]) -> Self {
        let numbers = || values.iter().map(|(value, _)| *value);
        let (low, high) =
            (numbers().fold(f64::INFINITY, f64::min), numbers().fold(f64::NEG_INFINITY, f64::max));
        let margin = if high > low { (high - low) * 0.05 } else { 1.0 };
        let ticks = values.iter().map(|(value, label)| (*value, (*label).to_owned())).collect();
        Self {
            name: name.to_owned(),
            low: low - margin,
            high: high + margin,
            scale: Scale::Linear,
            ticks,
        }
    }

    /// Returns the position of a value on the axis, from 0 to 1.
    pub(super) fn part(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => libm::log(value / self.low) / libm::log(self.high / self.low),
            Scale::Tail => libm::log(1.0 - value) / libm::log(1.0 - self.high),
        }
    }

    /// Returns the positions and labels of the ticks.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().map(|(value, label)| (self.part(*value), label.as_str()))
    }
}

/// Returns the smallest round step with which about `count` steps reach `max`.
fn step(unit: Unit, max: f64, count: f64) -> f64 {
    let min_step = max / count;
    if unit == Unit::Time {
        let round = ROUND_TIMES.iter().copied().find(|step| *step >= min_step);
        // Beyond a week, the step is a whole number of weeks.
        return round.unwrap_or_else(|| (min_step / 604_800.0).ceil() * 604_800.0);
    }
    let mut decade = 1e-6;
    while decade * 10.0 <= min_step {
        decade *= 10.0;
    }
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|times| times * decade)
        .into_iter()
        .find(|step| *step >= min_step);
    let step = step.unwrap_or(decade * 10.0);
    if unit == Unit::Count { step.max(1.0) } else { step }
}

fn label(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time if value <= 0.0 => "0".to_owned(),
        Unit::Time if value < 1.0 => format!("{} ms", numbers::trimmed(value * 1e3, 1)),
        Unit::Time => numbers::span(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)),
        Unit::Count | Unit::Number => numbers::digits(value),
        Unit::Share => numbers::share(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_have_units() {
        assert_eq!(
            labels(&Axis::linear("", Unit::Count, 23.0)),
            ["0", "5", "10", "15", "20", "25"]
        );
        assert_eq!(labels(&Axis::linear("", Unit::Count, 0.0)), ["0", "1"]);
        assert_eq!(
            labels(&Axis::linear("", Unit::Share, 1.0)),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        assert_eq!(
            labels(&Axis::linear("", Unit::Time, 100.0)),
            ["0", "30 s", "1 min", "90 s", "2 min"]
        );
        assert_eq!(labels(&Axis::run(86_450.0, 8.0)).last(), Some(&"24 h"));
        assert_eq!(
            labels(&Axis::times("", [0.0, 0.3, 50.0].into_iter())),
            ["≤100 ms", "300 ms", "1 s", "3 s", "10 s", "30 s"]
        );
        assert_eq!(
            labels(&Axis::times("", std::iter::empty())),
            ["≤10 ms", "30 ms", "100 ms", "300 ms", "1 s"]
        );
    }

    #[test]
    fn values_are_mapped_to_positions() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        let times = Axis::times("", [0.01, 1.0 / 1.15].into_iter());
        near(times.part(0.0), 0.0);
        near(times.part(0.1), 0.5);
        near(times.part(1e9), 1.0);
        let tail = Axis::percentiles("");
        near(tail.part(0.9), 1.0 / 3.0);
        near(tail.part(0.99), 2.0 / 3.0);
        near(tail.part(1.0), 1.0);
        near(Axis::values("", &[(3.0, "3")]).part(3.0), 0.5);
    }
}
