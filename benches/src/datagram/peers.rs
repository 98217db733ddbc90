//! glommio, tokio and tokio-uring, each written as its own documentation does.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};

use super::Meter;

const BUFFER: usize = 2048;

pub fn glommio(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    let executor = glommio::LocalExecutorBuilder::default()
        .make()
        .map_err(|error| anyhow!("glommio's executor: {error}"))?;
    executor.run(async {
        let socket =
            glommio::net::UdpSocket::bind(at).map_err(|error| anyhow!("binding: {error}"))?;
        let mut octets = [0; BUFFER];
        loop {
            let received = socket.recv_from(&mut octets).await;
            let (length, peer) = received.map_err(|error| anyhow!("receiving: {error}"))?;
            let sent = socket.send_to(&octets[..length], peer).await;
            sent.map_err(|error| anyhow!("answering: {error}"))?;
            if meter.add(1) {
                return Ok(());
            }
        }
    })
}

pub fn tokio(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("tokio's runtime")?;
    runtime.block_on(async {
        let socket = tokio::net::UdpSocket::bind(at).await.context("binding")?;
        let mut octets = [0; BUFFER];
        loop {
            let (length, peer) = socket.recv_from(&mut octets).await.context("receiving")?;
            socket
                .send_to(&octets[..length], peer)
                .await
                .context("answering")?;
            if meter.add(1) {
                return Ok(());
            }
        }
    })
}

pub fn tokio_uring_one(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    tokio_uring(at, meter, 1)
}

pub fn tokio_uring_many(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    tokio_uring(at, meter, 16)
}

/// Each task receives one datagram, answers it, and receives the next.
fn tokio_uring(at: SocketAddr, meter: &mut Meter, tasks: usize) -> Result<()> {
    // Tasks own what they use: the meter goes in and comes back.
    let shared = Rc::new(RefCell::new(std::mem::replace(meter, Meter::new(0, 0))));
    let result = tokio_uring::start({
        let shared = Rc::clone(&shared);
        async move {
            let socket = Rc::new(
                tokio_uring::net::UdpSocket::bind(at)
                    .await
                    .context("binding")?,
            );
            let over = Rc::new(Cell::new(false));
            let done = Rc::new(tokio::sync::Notify::new());
            let failure = Rc::new(RefCell::new(None));
            for _ in 0..tasks {
                let (socket, shared, over) =
                    (Rc::clone(&socket), Rc::clone(&shared), Rc::clone(&over));
                let (done, failure) = (Rc::clone(&done), Rc::clone(&failure));
                tokio_uring::spawn(async move {
                    let mut octets = vec![0; BUFFER];
                    while !over.get() {
                        let (received, buffer) = socket.recv_from(octets).await;
                        let sent = match received {
                            Ok((length, peer)) => {
                                let mut answer = buffer;
                                answer.truncate(length);
                                let (sent, buffer) = socket.send_to(answer, peer).await;
                                octets = buffer;
                                octets.resize(BUFFER, 0);
                                sent
                            }
                            Err(error) => {
                                octets = buffer;
                                Err(error)
                            }
                        };
                        if let Err(error) = &sent {
                            *failure.borrow_mut() = Some(error.to_string());
                        }
                        if sent.is_err() || shared.borrow_mut().add(1) {
                            over.set(true);
                            done.notify_one();
                        }
                    }
                });
            }
            done.notified().await;
            match failure.take() {
                Some(error) => Err(anyhow!("answering: {error}")),
                None => Ok(()),
            }
        }
    });
    std::mem::swap(meter, &mut shared.borrow_mut());
    result
}
