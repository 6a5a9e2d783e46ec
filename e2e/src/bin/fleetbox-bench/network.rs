//! A cluster's network, made and closed with no machine on it.

use std::time::{Duration, Instant};

use anyhow::Result;
use fleetbox::Cluster;

/// How long the two calls took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) create: Duration,
    pub(crate) close: Duration,
}

pub(crate) async fn make_and_close(name: &str) -> Result<Took> {
    let began = Instant::now();
    let cluster = Cluster::builder(name).create().await?;
    let create = began.elapsed();
    let began = Instant::now();
    cluster.close().await?;
    Ok(Took { create, close: began.elapsed() })
}
