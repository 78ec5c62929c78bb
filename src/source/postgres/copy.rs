//! One model's rows: a binary COPY, encoded as it comes.

use std::pin::pin;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::source::postgres::error::classify;
use crate::source::postgres::groups::GroupReader;
use crate::source::postgres::row::RowEncoder;
use crate::source::{BoxError, GroupSets, RowBatch, RowRef, SourceError};

/// What every binary COPY begins with (PostgreSQL docs, COPY, "File Header"); flags and an extension follow.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// What stands in place of a tuple's number of columns after the last one.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// One model to copy.
pub struct Copy {
    /// Index of the model in the schema.
    pub model: usize,
    /// Its name, for the log.
    pub class: String,
    /// The rows to read.
    pub select: String,
    /// Writes them.
    pub encoder: RowEncoder,
    /// Finds their group sets.
    pub groups: GroupReader,
    /// Whether `select` orders by group set.
    pub by_set: bool,
}

impl Copy {
    /// Reads all rows and sends them in batches of about `batch_bytes`. Waits while the channel is full. When the
    /// receiver is gone it returns at once, in mid-statement.
    ///
    /// # Errors
    /// What the database says, or a value that can't be written.
    pub async fn run(
        mut self,
        client: &Client,
        sets: &GroupSets,
        batch_bytes: usize,
        batches: &mpsc::Sender<Result<RowBatch, SourceError>>,
    ) -> Result<(), SourceError> {
        let doing = format!("reading the rows of {}", self.class);
        let command = format!("COPY ({}) TO STDOUT (FORMAT binary)", self.select);
        let stream = client.copy_out(&command).await.map_err(|error| classify(&doing, error))?;
        let mut stream = pin!(stream);
        let mut batch = self.batch(batch_bytes);
        let (mut begun, mut complete, mut rows, mut unseen) = (false, false, 0_u64, 0_u64);
        // Every message is one row; the header comes with the first (PostgreSQL docs, "COPY Operations").
        while let Some(message) = stream.next().await {
            let message = message.map_err(|error| classify(&doing, error))?;
            let tuple = if begun { &message[..] } else { after_header(&message).ok_or_else(|| broken(&doing))? };
            begun = true;
            if tuple == TRAILER {
                complete = true;
                continue;
            }
            // A header that comes alone is no row.
            if tuple.is_empty() {
                continue;
            }
            let failed = |cause: BoxError| SourceError::failed(doing.clone(), cause);
            let start = batch.lines.len();
            self.encoder.line(tuple, &mut batch.lines).map_err(|error| failed(error.into()))?;
            let set = self.groups.set(tuple, self.encoder.places(), sets).map_err(|error| failed(error.into()))?;
            let Some(set) = set else {
                batch.lines.truncate(start);
                unseen += 1;
                continue;
            };
            rows += 1;
            let end = u32::try_from(batch.lines.len()).map_err(|_| failed("a row of more than 4 GiB".into()))?;
            batch.rows.push(RowRef { end, set });
            if batch.lines.len() >= batch_bytes {
                let full = std::mem::replace(&mut batch, self.batch(batch_bytes));
                if batches.send(Ok(full)).await.is_err() {
                    return Ok(());
                }
            }
        }
        if !complete {
            return Err(broken(&doing));
        }
        if !batch.rows.is_empty() && batches.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
        tracing::debug!(model = self.class, rows, unseen, "read");
        Ok(())
    }

    fn batch(&self, bytes: usize) -> RowBatch {
        // The row that fills a batch overshoots; a little room spares most batches a second, larger piece of memory.
        let lines = Vec::with_capacity(bytes + bytes / 16);
        RowBatch { model: self.model, lines, rows: Vec::new(), by_set: self.by_set }
    }
}

/// What follows the header: signature, flags, and an extension of a length it names.
fn after_header(message: &[u8]) -> Option<&[u8]> {
    let rest = message.strip_prefix(SIGNATURE)?.get(4..)?;
    let (length, rest) = rest.split_first_chunk()?;
    rest.get(usize::try_from(i32::from_be_bytes(*length)).ok()?..)
}

fn broken(doing: &str) -> SourceError {
    SourceError::failed(doing, "the COPY is not in the binary format, or not whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_taken_off_with_its_extension() {
        let header = [SIGNATURE.as_slice(), &[0, 0, 0, 0, 0, 0, 0, 2, 7, 7, 255, 255]].concat();
        assert_eq!(after_header(&header), Some(&TRAILER[..]));
        assert_eq!(after_header(&header[..18]), None);
        assert_eq!(after_header(b"something else"), None);
    }
}
