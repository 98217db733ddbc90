//! Which rack talks to a BMC: a pure choice over what is known of each rack's way there.

use std::fmt;

use store::bmc::Route;

/// Why a rack was chosen; recorded with the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    OnSubnet,
    Configured,
    Learned,
    Untried,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::OnSubnet => "it has an interface on the BMC's subnet",
            Reason::Configured => "an operator configured it",
            Reason::Learned => "it reached the BMC before",
            Reason::Untried => "it is connected; no rack is known to reach the BMC",
        })
    }
}

/// The rack to ask next: connected, and not in `tried`.
///
/// A rack whose last try got no answer comes after all others. Then: on the BMC's subnet, configured, learned (latest
/// success first), any other. Equals are spread over the BMCs by `bmc_id`.
pub fn choose_rack<'a>(
    bmc_id: i32,
    routes: &'a [Route],
    connected: &[String],
    tried: &[String],
) -> Option<(&'a str, Reason)> {
    routes
        .iter()
        .filter(|route| connected.contains(&route.rack) && !tried.contains(&route.rack))
        .min_by_key(|route| {
            let failing = route.failures > 0
                && route
                    .last_failure
                    .is_some_and(|failure| route.last_ok.is_none_or(|ok| ok < failure));
            let latest = route
                .last_ok
                .map(|at| at.unix_timestamp())
                .unwrap_or(i64::MIN);
            (
                failing,
                reason(route),
                std::cmp::Reverse(latest),
                spread(bmc_id, &route.rack),
            )
        })
        .map(|route| (route.rack.as_str(), reason(route)))
}

fn reason(route: &Route) -> Reason {
    match route {
        Route {
            on_subnet: true, ..
        } => Reason::OnSubnet,
        Route {
            configured: true, ..
        } => Reason::Configured,
        Route {
            last_ok: Some(_), ..
        } => Reason::Learned,
        _ => Reason::Untried,
    }
}

/// FNV-1a: any fixed mixing does.
fn spread(bmc_id: i32, rack: &str) -> u64 {
    bmc_id
        .to_le_bytes()
        .iter()
        .chain(rack.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn route(rack: &str) -> Route {
        Route {
            rack: rack.to_owned(),
            configured: false,
            on_subnet: false,
            last_ok: None,
            last_failure: None,
            failures: 0,
        }
    }

    fn at(secs: i64) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(secs).ok()
    }

    #[test]
    fn the_best_connected_rack_is_chosen() {
        let near = Route {
            on_subnet: true,
            ..route("near")
        };
        let said = Route {
            configured: true,
            ..route("said")
        };
        let old = Route {
            last_ok: at(10),
            ..route("old")
        };
        let new = Route {
            last_ok: at(20),
            ..route("new")
        };
        let other = route("other");
        let deaf = Route {
            on_subnet: true,
            failures: 2,
            last_failure: at(30),
            ..route("deaf")
        };
        let well = Route {
            on_subnet: true,
            failures: 0,
            last_failure: at(30),
            last_ok: at(40),
            ..route("well")
        };
        let all = [&other, &old, &deaf, &said, &new, &near].map(Clone::clone);
        type Case<'a> = (
            &'a str,
            &'a [Route],
            &'a [&'a str],
            &'a [&'a str],
            Option<(&'a str, Reason)>,
        );
        #[rustfmt::skip]
        let cases: [Case<'_>; 10] = [
            ("subnet first",        &all, &["near", "said", "new"], &[],       Some(("near", Reason::OnSubnet))),
            ("then configured",     &all, &["said", "new", "other"], &[],      Some(("said", Reason::Configured))),
            ("then the latest",     &all, &["old", "new", "other"], &[],       Some(("new", Reason::Learned))),
            ("then any",            &all, &["other"], &[],                     Some(("other", Reason::Untried))),
            ("tried ones are out",  &all, &["near", "other"], &["near"],       Some(("other", Reason::Untried))),
            ("failing comes last",  &all, &["deaf", "other"], &[],             Some(("other", Reason::Untried))),
            ("failing, but alone",  &all, &["deaf"], &[],                      Some(("deaf", Reason::OnSubnet))),
            ("recovered",           &[well, other], &["well", "other"], &[],   Some(("well", Reason::OnSubnet))),
            ("not connected",       &all, &[], &[],                            None),
            ("a rack without row",  &[], &["near"], &[],                       None),
        ];
        for (case, routes, connected, tried, want) in cases {
            let own = |names: &[&str]| {
                names
                    .iter()
                    .map(|name| name.to_string())
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                choose_rack(7, routes, &own(connected), &own(tried)),
                want,
                "{case}"
            );
        }
    }

    #[test]
    fn equal_racks_share_the_bmcs() {
        let routes = ["a", "b", "c"].map(route);
        let connected = ["a", "b", "c"].map(str::to_owned);
        for rack in ["a", "b", "c"] {
            let share = (0..300)
                .filter(|bmc| {
                    choose_rack(*bmc, &routes, &connected, &[]).is_some_and(|c| c.0 == rack)
                })
                .count();
            assert!((50..=150).contains(&share), "{rack} got {share} of 300");
        }
    }
}
