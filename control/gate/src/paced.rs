//! A stream whose peer must take what it asked for at some pace, or loses it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// While there is more for the peer than it takes, it takes at least `octets` in each `window`.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub octets: usize,
    pub window: Duration,
}

/// Of HTTP answers: a tenth of what a 56 kbit/s modem did. A peer that is slower holds memory for nothing.
pub const PACE: Pace = Pace {
    octets: 16 << 10,
    window: Duration::from_secs(30),
};

/// Reads and writes as the stream below; a write to a peer that is too slow fails with `TimedOut`.
pub struct Paced<S> {
    stream: S,
    pace: Pace,
    /// Taken since the window began.
    taken: usize,
    /// Set while the peer keeps us waiting.
    window: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub fn new(stream: S, pace: Pace) -> Self {
        Self {
            stream,
            pace,
            taken: 0,
            window: None,
        }
    }

    /// What a write came to, held to the pace.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(octets)) => {
                if self.window.is_some() {
                    self.taken = self.taken.saturating_add(octets);
                }
                Poll::Ready(Ok(octets))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let pace = self.pace;
                let window = self.window.get_or_insert_with(|| {
                    self.taken = 0;
                    Box::pin(tokio::time::sleep(pace.window))
                });
                while window.as_mut().poll(cx).is_ready() {
                    if self.taken < pace.octets {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    self.taken = 0;
                    window.as_mut().reset(Instant::now() + pace.window);
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, octets);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The end of an answer that all went out: the next one has a window of its own.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match flushed {
            Poll::Pending => match self.judge(cx, Poll::Pending) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const TEST: Pace = Pace {
        octets: 100,
        window: Duration::from_secs(30),
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_loses_the_answer() {
        let (near, _far) = tokio::io::duplex(64);
        let mut paced = Paced::new(near, TEST);
        let started = Instant::now();
        let error = paced.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_octet_now_and_then_is_no_progress_but_a_pace_is() {
        for (octets, fine) in [(1, false), (50, true)] {
            let (near, mut far) = tokio::io::duplex(64);
            let mut paced = Paced::new(near, TEST);
            let reader = tokio::spawn(async move {
                let mut buffer = vec![0; octets];
                while far.read_exact(&mut buffer).await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(9)).await;
                }
            });
            let written = paced.write_all(&[0; 4096]).await;
            assert_eq!(written.is_ok(), fine, "{octets} octets at once");
            reader.abort();
        }
    }
}
