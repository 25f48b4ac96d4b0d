//! Axes with round values on them.

use super::super::numbers;
use crate::metric::Unit;

/// Times that are round, in seconds.
const ROUND_TIMES: [f64; 28] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0,
    604_800.0,
];

/// Times on a logarithmic axis that is short.
const FINE: [f64; 15] = [
    0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0, 10_800.0,
    36_000.0,
];

/// Times on a logarithmic axis.
const DECADES: [f64; 11] =
    [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 36_000.0, 360_000.0, 3_600_000.0];

/// Which values are where.
#[derive(Debug, Clone)]
pub(in super::super) struct Axis {
    /// What is on it.
    pub(in super::super) name: String,
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<(f64, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
    /// Parts of all, by how few are beyond them: 0, 90 %, 99 % and 99.9 % are equally far from each other.
    Tail,
}

impl Axis {
    /// From nothing to a little more than this.
    pub(in super::super) fn linear(name: &str, unit: Unit, most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let step = step(unit, most, 5.0);
        let high = (most / step - 1e-9).ceil() * step;
        let count = (high / step + 1e-9).floor() as u32;
        let ticks = (0..=count).map(|tick| f64::from(tick) * step);
        let ticks = ticks.map(|value| (value, label(unit, value))).collect();
        Self { name: name.to_owned(), low: 0.0, high, scale: Scale::Linear, ticks }
    }

    /// The time since the begin of a run.
    pub(in super::super) fn run(lasted: f64, ticks: f64) -> Self {
        let high = if lasted > 0.0 { lasted } else { 1.0 };
        let step = step(Unit::Time, high, ticks);
        let ticks = (0..=(high / step + 1e-9).floor() as u32).map(|tick| f64::from(tick) * step);
        let ticks = ticks.map(|value| (value, label(Unit::Time, value))).collect();
        Self {
            name: "time since the begin".to_owned(),
            low: 0.0,
            high,
            scale: Scale::Linear,
            ticks,
        }
    }

    /// Times that differ a lot. What is shorter than the first tick is drawn there.
    pub(in super::super) fn times(name: &str, values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        let low = DECADES
            .iter()
            .rev()
            .copied()
            .find(|it| *it <= least.max(0.01))
            .unwrap_or(0.01)
            .min(10.0);
        let low = if most > 0.0 { low } else { 0.01 };
        let high = (most * 1.15).max(low * 100.0);
        let inside =
            |values: &'static [f64]| values.iter().filter(move |it| (low..=high).contains(*it));
        let ticks: Vec<_> =
            if inside(&DECADES).count() < 5 { inside(&FINE) } else { inside(&DECADES) }.collect();
        let mut ticks: Vec<_> =
            ticks.into_iter().map(|value| (*value, label(Unit::Time, *value))).collect();
        if let Some((_, first)) = ticks.first_mut() {
            first.insert(0, '≤');
        }
        Self { name: name.to_owned(), low, high, scale: Scale::Logarithmic, ticks }
    }

    /// Percentiles, with as much room for the last of a hundred as for the first ninety.
    pub(in super::super) fn percentiles(name: &str) -> Self {
        let ticks = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
        let ticks = ticks.map(|(value, label)| (value, label.to_owned())).to_vec();
        Self { name: name.to_owned(), low: 0.0, high: 0.999, scale: Scale::Tail, ticks }
    }

    /// From the first to the last of so many.
    pub(in super::super) fn ranks(name: &str, count: usize) -> Self {
        let high = count.max(2) as f64;
        let step = step(Unit::Count, high, 10.0);
        let round = (1..=(high / step).floor() as u32).map(|tick| f64::from(tick) * step);
        let ticks = std::iter::once(1.0).chain(round.filter(|value| *value > 1.0));
        let ticks = ticks.map(|value| (value, label(Unit::Count, value))).collect();
        Self { name: name.to_owned(), low: 1.0, high, scale: Scale::Linear, ticks }
    }

    /// These values, as they were written.
    pub(in super::super) fn values(name: &str, values: &[(f64, &str)]) -> Self {
        let numbers = || values.iter().map(|(value, _)| *value);
        let (low, high) =
            (numbers().fold(f64::INFINITY, f64::min), numbers().fold(f64::NEG_INFINITY, f64::max));
        let room = if high > low { (high - low) * 0.05 } else { 1.0 };
        let ticks = values.iter().map(|(value, label)| (*value, (*label).to_owned())).collect();
        Self {
            name: name.to_owned(),
            low: low - room,
            high: high + room,
            scale: Scale::Linear,
            ticks,
        }
    }

    /// How far along the axis a value is, from 0 to 1.
    pub(super) fn part(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => libm::log(value / self.low) / libm::log(self.high / self.low),
            Scale::Tail => libm::log(1.0 - value) / libm::log(1.0 - self.high),
        }
    }

    /// Round values, with their names.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().map(|(value, label)| (self.part(*value), label.as_str()))
    }
}

/// The smallest round step that makes no more than about so many.
fn step(unit: Unit, most: f64, count: f64) -> f64 {
    let least = most / count;
    if unit == Unit::Time {
        let round = ROUND_TIMES.iter().copied().find(|step| *step >= least);
        // Beyond weeks, whole weeks.
        return round.unwrap_or_else(|| (least / 604_800.0).ceil() * 604_800.0);
    }
    let mut decade = 1e-6;
    while decade * 10.0 <= least {
        decade *= 10.0;
    }
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|times| times * decade).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(decade * 10.0);
    if unit == Unit::Count { step.max(1.0) } else { step }
}

fn label(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time if value <= 0.0 => "0".to_owned(),
        Unit::Time if value < 1.0 => format!("{} ms", numbers::trimmed(value * 1e3, 1)),
        Unit::Time => numbers::span(crate::random::seconds(value)),
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
    fn values_have_their_places() {
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
