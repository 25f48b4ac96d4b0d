//! The configuration of the policy.

use pointsman_sdk::config::Value;
use pointsman_sdk::{PolicyError, config};

use crate::schedule::{DAYS, Hours, parse_time_of_day};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Offset of local time from UTC in minutes.
    pub(crate) utc_offset_min: i16,
    /// Validity of a lane hint that is not renewed.
    pub(crate) hint_ttl_ms: u32,
    /// Schedules in order of precedence.
    pub(crate) schedules: Vec<Schedule>,
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// Name for the reason shown to operators and clients.
    pub(crate) name: String,
    pub(crate) hours: Hours,
    /// Preferred lanes for requests, best first.
    pub(crate) prefer: Vec<String>,
    /// Whether requests use only preferred lanes, as long as one of them is available.
    pub(crate) only: bool,
    /// Lanes to load and keep.
    pub(crate) load: Vec<String>,
    /// Lanes to keep if they are loaded.
    pub(crate) keep: Vec<String>,
    /// Lanes that may be unloaded.
    pub(crate) release: Vec<String>,
    /// Minutes before the start of the hours at which lanes are loaded.
    pub(crate) preload_min: u16,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self { utc_offset_min: 0, hint_ttl_ms: 120_000, schedules: Vec::new() };
        config::read(json, |key, value| {
            match key {
                "utc-offset-min" => config.utc_offset_min = value.integer(-14 * 60..=14 * 60)?,
                "hint-ttl-s" => config.hint_ttl_ms = value.integer(1..=24 * 60 * 60u32)? * 1000,
                "schedules" => config.schedules = value.list(schedule)?,
                _ => return Err(value.unknown_key()),
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
        preload_min: 0,
    };
    value.entries(|key, value| {
        match key {
            "name" => schedule.name = value.string()?,
            "days" => schedule.hours.days = days(value)?,
            "from" => schedule.hours.from = time(value, 23 * 60 + 59)?,
            "to" => schedule.hours.to = time(value, 24 * 60)?,
            "prefer" => schedule.prefer = value.strings()?,
            "only" => schedule.only = value.bool()?,
            "load" => schedule.load = value.strings()?,
            "keep" => schedule.keep = value.strings()?,
            "release" => schedule.release = value.strings()?,
            "preload-min" => schedule.preload_min = value.integer(0..=12 * 60)?,
            _ => return Err(value.unknown_key()),
        }
        Ok(())
    })?;
    if schedule.hours.from == schedule.hours.to {
        return Err(value
            .error("`from` and `to` must differ; for a whole day, use \"00:00\" and \"24:00\""));
    }
    if schedule.only && schedule.prefer.is_empty() {
        return Err(value.error("`only` requires lanes in `prefer`"));
    }
    let hints =
        [("load", &schedule.load), ("keep", &schedule.keep), ("release", &schedule.release)];
    for (index, (list, lanes)) in hints.iter().enumerate() {
        for (other, others) in &hints[..index] {
            if let Some(lane) = lanes.iter().find(|lane| others.contains(lane)) {
                return Err(
                    value.error(&format!("lane \"{lane}\" is in both `{other}` and `{list}`"))
                );
            }
        }
    }
    Ok(schedule)
}

fn days(value: &Value<'_, '_>) -> Result<u8, PolicyError> {
    let words: Vec<(&str, u8)> =
        DAYS.iter().zip(0u8..).map(|(name, day)| (*name, 1 << day)).collect();
    let days = value.list(|day| day.choice(&words))?.into_iter().fold(0, |days, day| days | day);
    if days == 0 { Err(value.error("expected at least one day")) } else { Ok(days) }
}

fn time(value: &Value<'_, '_>, latest: u16) -> Result<u16, PolicyError> {
    let time =
        value.string().ok().as_deref().and_then(parse_time_of_day).filter(|time| *time <= latest);
    time.ok_or_else(|| {
        value.error(&format!(
            "expected a time of day from \"00:00\" to \"{:02}:{:02}\"",
            latest / 60,
            latest % 60
        ))
    })
}
