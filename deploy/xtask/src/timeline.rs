//! The twelve steps of a commissioning, read from the region's event log.

use std::time::{SystemTime, UNIX_EPOCH};

use model::{EventType, STEPS};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: i64,
    /// Unix time.
    pub at_secs: f64,
    pub kind: String,
    pub level: String,
    pub description: String,
    /// Of a commissioning, 1 to 12.
    pub step: Option<usize>,
}

impl Event {
    pub fn parse(event: &Value) -> Option<Self> {
        let text = |name: &str| {
            event
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let time = ["at", "created"]
            .iter()
            .find_map(|name| parse_time(&text(name)));
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |past| past.as_secs_f64())
        };
        let kind: Option<EventType> = text("event_type").parse().ok();
        Some(Self {
            id: event.get("id").and_then(Value::as_i64)?,
            at_secs: time.unwrap_or_else(now),
            kind: text("type"),
            level: text("level"),
            description: text("description"),
            step: kind.and_then(EventType::step).map(usize::from),
        })
    }

    /// What happened, in the event's own words or in those of its kind.
    pub fn text(&self) -> &str {
        if self.description.is_empty() {
            &self.kind
        } else {
            &self.description
        }
    }
}

/// The first event of each step, in order.
pub fn steps(events: &[Event]) -> Vec<Option<&Event>> {
    (1..=STEPS.len())
        .map(|step| {
            let of_step = events.iter().filter(|event| event.step == Some(step));
            of_step.min_by_key(|event| event.id)
        })
        .collect()
}

/// What a step is called.
pub fn step_name(step: usize) -> &'static str {
    STEPS
        .get(step.wrapping_sub(1))
        .map_or("", |kind| kind.description())
}

pub fn print(name: &str, events: &[Event]) {
    let steps = steps(events);
    let start = steps
        .first()
        .copied()
        .flatten()
        .map_or(0.0, |event| event.at_secs);
    println!("\n{name}: the twelve steps");
    for (number, step) in (1..).zip(steps) {
        match step {
            Some(event) => {
                let seconds = event.at_secs - start;
                println!(
                    "  {number:>2}  {seconds:>7.2} s  {:28} {}",
                    step_name(number),
                    event.description
                );
            }
            None => println!(
                "  {number:>2}        -    {:28} did not happen",
                step_name(number)
            ),
        }
    }
}

/// RFC 3339, or MAAS's own "Sun, 22 Nov. 2026 18:34:01" in UTC.
fn parse_time(text: &str) -> Option<f64> {
    if let Some((date, time)) = text.split_once('T') {
        let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
        let days = days_from_civil(date.next()??, date.next()??, date.next()??)?;
        let (time, offset) = split_offset(time)?;
        return Some(days as f64 * 86_400.0 + clock(time)? - offset);
    }
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split_whitespace();
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let month = MONTHS
        .iter()
        .position(|name| month.to_ascii_lowercase().starts_with(name))?
        + 1;
    let year = words.next()?.parse().ok()?;
    let days = days_from_civil(year, i64::try_from(month).ok()?, day)?;
    Some(days as f64 * 86_400.0 + clock(words.next()?)?)
}

/// The clock's part and the offset from UTC in seconds.
fn split_offset(time: &str) -> Option<(&str, f64)> {
    if let Some(time) = time.strip_suffix('Z') {
        return Some((time, 0.0));
    }
    let sign = time.rfind(['+', '-'])?;
    let (time, offset) = time.split_at(sign);
    let seconds = clock(&format!("{}:0", &offset[1..]))?;
    Some((
        time,
        if offset.starts_with('-') {
            -seconds
        } else {
            seconds
        },
    ))
}

fn clock(text: &str) -> Option<f64> {
    let mut parts = text.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = hours.parse::<u32>().ok()? * 3600 + minutes.parse::<u32>().ok()? * 60;
    Some(f64::from(whole) + seconds.parse::<f64>().ok()?)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March: the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_kinds_parse() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0.0)),
            ("2026-11-22T18:34:01.5Z", Some(1_795_372_441.5)),
            ("2026-11-22T19:34:01.5+01:00", Some(1_795_372_441.5)),
            ("2024-02-29T12:00:00Z", Some(1_709_208_000.0)),
            ("Sun, 22 Nov. 2026 18:34:01", Some(1_795_372_441.0)),
            ("Sun, 22 Nov 2026 18:34:01", Some(1_795_372_441.0)),
            ("", None),
            ("T", None),
            ("2026-11-22T", None),
            ("2026-13-22T00:00:00Z", None),
            ("x, y", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_time(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_first_event_of_a_step_counts() {
        let event = |id: i64, kind: &str| {
            let json =
                serde_json::json!({"id": id, "event_type": kind, "at": "2026-11-22T18:34:01Z"});
            Event::parse(&json).expect("an event")
        };
        let events = [
            event(9, "DHCP_ACK"),
            event(4, "DHCP_ACK"),
            event(2, "COMMISSIONING_REQUESTED"),
            event(3, "NEW"),
        ];
        let steps = steps(&events);
        assert_eq!(steps[4].map(|event| event.id), Some(4));
        assert_eq!(steps[0].map(|event| event.id), Some(2));
        assert_eq!(steps.iter().flatten().count(), 2);
        assert!(Event::parse(&serde_json::json!({})).is_none());
    }
}
