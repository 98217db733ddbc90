//! How much a machine may write into its results. A machine that writes without end fills its own share only.

/// Into one result, all its rewrites together.
pub const RESULT_BYTES_MAX: u64 = 32 << 20;
/// Into the results of one boot. Ten boots are kept of a machine.
pub const BOOT_BYTES_MAX: u64 = 64 << 20;

/// Whether so many octets more may be written.
pub fn has_room(result_bytes: u64, boot_bytes: u64, more: u64) -> bool {
    let fits = |written: u64, max: u64| written.saturating_add(more) <= max;
    fits(result_bytes, RESULT_BYTES_MAX) && fits(boot_bytes, BOOT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_count_for_the_result_and_all_results_for_the_boot() {
        const MIB: u64 = 1 << 20;
        for (result, boot, more, want) in [
            (0, 0, 16 * MIB, true),
            (16 * MIB, 16 * MIB, 16 * MIB, true),
            (32 * MIB, 32 * MIB, 1, false),
            (0, 48 * MIB, 16 * MIB, true),
            (0, 48 * MIB + 1, 16 * MIB, false),
            (32 * MIB, 64 * MIB, 0, true),
            (0, 0, u64::MAX, false),
        ] {
            assert_eq!(has_room(result, boot, more), want, "{result} {boot} {more}");
        }
    }
}
