//! What reading an org costs by itself: a scan whose lines go nowhere. For `make bench`.
//!
//! Takes the settings of the environment and the org's id. Prints a line of JSON: seconds from the call to the last
//! batch, rows, bytes of their lines.

use std::error::Error;
use std::path::PathBuf;

use futures_util::StreamExt;
use headstart::app;
use headstart::config::{Config, Layers};
use headstart::metrics::Metrics;
use headstart::model::Org;
use headstart::task::Tasks;
use tokio::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let org = Org::new(std::env::args().nth(1).ok_or("give it an org")?);
    let file = std::env::var_os("HEADSTART_CONFIG").map(PathBuf::from);
    let config = Config::new(&Layers::read(file.as_deref(), std::env::vars_os())?)?;
    let source = app::open_source(&config, &Tasks::new(), &Metrics::new())?;
    // Connected, and the catalog looked up, before the clock runs.
    source.schema().await?;
    source.watermark().await?;

    let began = Instant::now();
    let mut scan = source.scan(&org).await?;
    let (mut rows, mut bytes) = (0, 0);
    while let Some(batch) = scan.batches.next().await {
        let batch = batch?;
        rows += batch.rows.len();
        bytes += batch.lines.len();
    }
    println!(r#"{{"seconds": {:.6}, "rows": {rows}, "bytes": {bytes}}}"#, began.elapsed().as_secs_f64());
    Ok(())
}
