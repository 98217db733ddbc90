//! The rack's certificate: renewed in good time, and used from then on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Happening, Link, Thread};
use crate::link::identity::Identity;
use crate::link::{enrol, tls};

const RENEW_TIME: Duration = Duration::from_secs(30);

impl Thread {
    pub(super) fn renew(&mut self) {
        let Some(Link {
            session, welcome, ..
        }) = self.links.values().next()
        else {
            return;
        };
        if self.renewing || self.identity.remaining(SystemTime::now()) > welcome.renew {
            return;
        }
        let (session, identity) = (session.clone(), Rc::clone(&self.identity));
        let (shared, folder) = (Rc::clone(&self.shared), self.ports.state_dir.clone());
        self.renewing = true;
        self.calls.spawn_local(async move {
            let renewed = async {
                let (key, csr) = enrol::key_and_request().map_err(|error| error.to_string())?;
                let mut request = session.renew_request();
                request.get().set_csr(&csr);
                let answer = request
                    .send()
                    .promise
                    .await
                    .map_err(|error| error.to_string())?;
                let certificate = answer
                    .get()
                    .and_then(|answer| Ok(answer.get_certificate()?.to_vec()));
                let certificate = certificate.map_err(|error| error.to_string())?;
                let renewed = identity.renewed(key, certificate.into());
                let renewed = renewed.ok_or("the region gave a certificate that does not fit")?;
                // An fsync: not on this thread.
                let saved =
                    tokio::task::spawn_blocking(move || renewed.save(&folder).map(|()| renewed));
                let saved = saved.await.map_err(|error| error.to_string())?;
                saved.map_err(|error| error.to_string())
            };
            let renewed: Result<Identity, String> = tokio::time::timeout(RENEW_TIME, renewed)
                .await
                .unwrap_or(Err("no answer".into()));
            let renewed = renewed
                .inspect_err(|error| tracing::error!(error, "renewing this rack's certificate"))
                .ok();
            shared.tell(Happening::Renewed(renewed));
        });
    }

    pub(super) fn on_renewed(&mut self, identity: Option<Identity>) {
        self.renewing = false;
        let Some(identity) = identity else { return };
        match tls::client_config(&identity) {
            Ok(config) => {
                let config = Arc::new(config);
                self.shared.tls.replace(Arc::clone(&config));
                self.ports.tls.send_replace(Some(config));
                self.identity = Rc::new(identity);
                // The old certificate's links would end with it.
                self.shared.refresh.send_modify(|count| *count += 1);
                tracing::info!("certificate renewed");
            }
            Err(error) => tracing::error!(%error, "using the renewed certificate"),
        }
    }
}
