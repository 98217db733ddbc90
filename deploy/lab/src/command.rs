//! Runs other programs and says what went wrong in their own words.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end. Its stdout, or an error with what it said on stderr.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input has its reason, and it says it on stderr.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command that will run on a host of the lab. `ip` replaces itself, so the child's pid is the program's.
pub fn in_namespace(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// The same with a host name of its own, as a real host has.
pub fn on_host(namespace: &str, hostname: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, "unshare", "--uts", "sh", "-c"])
        .args([r#"hostname "$0" && exec "$@""#, hostname])
        .arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo reason >&2; exit 3"]))
            .expect_err("it exits with 3");
        let text = error.to_string();
        assert!(text.contains("reason") && text.contains('3'), "{text}");
        assert_eq!(
            run_with_input(&mut Command::new("cat"), "in").expect("cat"),
            "in"
        );
        assert!(run(&mut Command::new("/no/such/program")).is_err());
    }
}
