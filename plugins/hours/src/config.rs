//! The operator's configuration.

use pointsman_sdk::config::Value;
use pointsman_sdk::{PolicyError, config};

use crate::schedule::{DAYS, Hours, time_of_day};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Minutes that the operator's clocks are ahead of UTC.
    pub(crate) utc_offset_min: i16,
    /// How long a wish stands without being renewed.
    pub(crate) wish_ms: u32,
    /// In order: of those that apply, the first counts.
    pub(crate) schedules: Vec<Schedule>,
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// For people.
    pub(crate) name: String,
    pub(crate) hours: Hours,
    /// Lanes for requests, best first.
    pub(crate) prefer: Vec<String>,
    /// No other lanes, as long as one of these is able to serve.
    pub(crate) only: bool,
    /// Lanes to be loaded and kept.
    pub(crate) load: Vec<String>,
    /// Lanes to be kept if they are loaded.
    pub(crate) keep: Vec<String>,
    /// Lanes that may go.
    pub(crate) release: Vec<String>,
    /// Minutes before the beginning at which lanes are loaded.
    pub(crate) ahead_min: u16,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self { utc_offset_min: 0, wish_ms: 120_000, schedules: Vec::new() };
        config::read(json, |key, value| {
            match key {
                "utc-offset-min" => config.utc_offset_min = value.number(-14 * 60..=14 * 60)?,
                "wish-s" => config.wish_ms = value.number(1..=24 * 60 * 60u32)? * 1000,
                "schedules" => config.schedules = value.list(schedule)?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        for (index, schedule) in config.schedules.iter_mut().enumerate() {
            if schedule.name.is_empty() {
                schedule.name = format!("schedule {}", index + 1);
            }
        }
        Ok(config)
    }
}

fn schedule(value: &Value<'_, '_>) -> Result<Schedule, PolicyError> {
    let mut schedule = Schedule {
        name: String::new(),
        hours: Hours { days: 0b111_1111, from: 0, to: 0 },
        prefer: Vec::new(),
        only: false,
        load: Vec::new(),
        keep: Vec::new(),
        release: Vec::new(),
        ahead_min: 0,
    };
    value.each(|key, value| {
        match key {
            "name" => schedule.name = value.text()?,
            "days" => schedule.hours.days = days(value)?,
            "from" => schedule.hours.from = time(value, 23 * 60 + 59)?,
            "to" => schedule.hours.to = time(value, 24 * 60)?,
            "prefer" => schedule.prefer = value.texts()?,
            "only" => schedule.only = value.flag()?,
            "load" => schedule.load = value.texts()?,
            "keep" => schedule.keep = value.texts()?,
            "release" => schedule.release = value.texts()?,
            "ahead-min" => schedule.ahead_min = value.number(0..=12 * 60)?,
            _ => return Err(value.unknown()),
        }
        Ok(())
    })?;
    if schedule.hours.from == schedule.hours.to {
        return Err(
            value.wrong("`from` and `to` must differ; a whole day is from \"00:00\" to \"24:00\"")
        );
    }
    if schedule.only && schedule.prefer.is_empty() {
        return Err(value.wrong("`only` needs lanes in `prefer`"));
    }
    let wishes =
        [("load", &schedule.load), ("keep", &schedule.keep), ("release", &schedule.release)];
    for (index, (list, lanes)) in wishes.iter().enumerate() {
        for (other, others) in &wishes[..index] {
            if let Some(lane) = lanes.iter().find(|lane| others.contains(lane)) {
                return Err(value.wrong(&format!("`{lane}` is in `{other}` and in `{list}`")));
            }
        }
    }
    Ok(schedule)
}

fn days(value: &Value<'_, '_>) -> Result<u8, PolicyError> {
    let words: Vec<(&str, u8)> =
        DAYS.iter().zip(0u8..).map(|(name, day)| (*name, 1 << day)).collect();
    let days = value.list(|day| day.word(&words))?.into_iter().fold(0, |days, day| days | day);
    if days == 0 { Err(value.wrong("must name at least one day")) } else { Ok(days) }
}

fn time(value: &Value<'_, '_>, latest: u16) -> Result<u16, PolicyError> {
    let time = value.text().ok().as_deref().and_then(time_of_day).filter(|time| *time <= latest);
    time.ok_or_else(|| {
        value.wrong(&format!(
            "must be a time of day from \"00:00\" to \"{:02}:{:02}\"",
            latest / 60,
            latest % 60
        ))
    })
}
