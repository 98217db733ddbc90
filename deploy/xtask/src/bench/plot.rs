//! The plot of a DHCP bench: processor time per lease as bars, one group per case, on a logarithmic scale.

use std::fmt::Write as _;

use super::dhcp::Phase;
use super::peers::Server;
use super::table::Row;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 64.0;
const BAR: f64 = 15.0;
const GAP: f64 = 16.0;
/// Microseconds at the left edge.
const FLOOR: f64 = 1.0;

fn colour(server: Server) -> &'static str {
    match server {
        Server::Muster => "#c2410c",
        Server::Kea => "#1d4ed8",
        Server::Kea2 => "#60a5fa",
        Server::Isc => "#525252",
        Server::Dnsmasq => "#a3a3a3",
        Server::Floor => "#d6d3d1",
    }
}

fn title(row: &Row) -> String {
    let phase = match row.phase {
        Phase::New => "new clients",
        Phase::Again => "bound clients again",
        Phase::Avalanche => "10,000 at once",
    };
    match row.phase {
        Phase::Avalanche if row.case.ends_with("-lossy") => format!("{phase}, 1 % lost"),
        Phase::Avalanche => phase.to_owned(),
        _ => format!(
            "{}: {phase}",
            row.case
                .replace("-reserved", ", 30 % reserved")
                .replace("-relay", ", relayed")
        ),
    }
}

/// A whole SVG file.
pub fn svg(rows: &[Row]) -> String {
    let most = rows.iter().map(|row| row.cpu_us).fold(10.0, f64::max);
    let decades = (most / FLOOR).log10().ceil().max(1.0);
    let span = WIDTH - LEFT - RIGHT;
    let x = |us: f64| LEFT + span * ((us / FLOOR).log10() / decades).clamp(0.0, 1.0);

    let mut bars = String::new();
    let mut y = TOP;
    let mut group = String::new();
    for row in rows {
        let title = title(row);
        if title != group {
            y += GAP;
            writeln!(
                bars,
                r##"<text x="{LEFT}" y="{:.0}" class="group">{title}</text>"##,
                y - 4.0
            )
            .ok();
            group = title;
        }
        let (middle, end) = (y + BAR - 4.0, x(row.cpu_us));
        writeln!(
            bars,
            r##"<text x="{:.0}" y="{middle:.0}" class="name">{}</text><rect x="{LEFT}" y="{y:.0}" width="{:.1}" height="{:.0}" fill="{}"/><text x="{:.1}" y="{middle:.0}">{:.1} us{}</text>"##,
            LEFT - 8.0,
            row.server.name(),
            (end - LEFT).max(1.0),
            BAR - 3.0,
            colour(row.server),
            end + 5.0,
            row.cpu_us,
            if row.phase == Phase::Avalanche { format!(", {:.1} s", row.seconds) } else { String::new() },
        )
        .ok();
        y += BAR;
    }
    let height = y + 40.0;
    let mut lines = String::new();
    for decade in 0..=decades as i32 {
        let us = FLOOR * 10f64.powi(decade);
        let at = x(us);
        writeln!(
            lines,
            r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{y:.0}" class="grid"/><text x="{at:.1}" y="{:.0}" class="tick">{us:.0}</text>"##,
            y + 16.0
        )
        .ok();
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" role="img" aria-label="Processor time per DHCP lease">
<style>text{{font:11px sans-serif;fill:#1f2937}}.title{{font-size:15px;font-weight:bold}}.group{{font-weight:bold}}.name{{text-anchor:end}}.tick{{text-anchor:middle;fill:#6b7280}}.grid{{stroke:#e5e7eb}}rect.back{{fill:#fff}}</style>
<rect class="back" width="100%" height="100%"/>
<text x="16" y="24" class="title">Processor time per lease (DORA), all processes of the server</text>
<text x="16" y="42">Microseconds, logarithmic; shorter is better. Muster includes its region and PostgreSQL with fsync; Kea's memfile does not fsync.</text>
{lines}{bars}</svg>
"##
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_bar() {
        let row = |server, phase, cpu_us| Row {
            case: "64k-relay",
            server,
            phase,
            rounds: 1,
            offered: None,
            completed: 1.0,
            lost_percent: 0.0,
            cpu_us,
            of_kea: None,
            offer_p50_ms: 1.0,
            offer_p99_ms: 1.0,
            ack_p50_ms: 1.0,
            ack_p99_ms: 1.0,
            ack_max_ms: 1.0,
            seconds: 3.25,
            sent_again: None,
            given_twice: None,
        };
        let rows = [
            row(Server::Muster, Phase::New, 14.0),
            row(Server::Isc, Phase::New, 2_700.0),
            row(Server::Muster, Phase::Avalanche, f64::NAN),
        ];
        let text = svg(&rows);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert_eq!(text.matches("<rect x=").count(), 3);
        assert!(
            text.contains("64k, relayed: new clients") && text.contains("2700.0 us"),
            "{text}"
        );
        assert!(
            text.contains(">10000<"),
            "the scale goes beyond the largest: {text}"
        );
    }
}
