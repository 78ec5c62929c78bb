//! The bytes of answers made by hand.

use std::io::Read;

use futures_util::TryStreamExt;
use proptest::collection;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::*;
use crate::http::fake::{Fake, Frames, broken, compress, facts, frames, lines, live};
use crate::serve::Content;

async fn collect(bytes: ByteStream) -> Result<Vec<u8>, BodyError> {
    bytes
        .try_fold(Vec::new(), async |mut all, piece| {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
}

fn measured(fake: &Arc<Fake>, encoding: Encoding) -> Measured {
    Measured::new(fake.clone(), facts().trailer(fake.rows(), None), encoding).unwrap()
}

async fn whole(fake: Fake, encoding: Encoding) -> Result<Vec<u8>, BodyError> {
    let answer = measured(&Arc::new(fake), encoding);
    let len = answer.total();
    let bytes = collect(answer.read(0..len, rests())).await?;
    assert_eq!(bytes.len() as u64, len);
    Ok(bytes)
}

/// So little that most of what is decoded is dropped and decoded again.
fn rests() -> Rests {
    Rests::new(300 << 10)
}

fn tail() -> Tail {
    Tail { facts: facts(), count: None, ready: Vec::new(), rest: None }
}

fn of_live(parts: Vec<Result<Part, ServeError>>, encoding: Encoding) -> ByteStream {
    match live(parts).content {
        Content::Live(parts) => follow(parts, tail(), encoding, rests()),
        Content::Stored(_) | Content::Nothing => unreachable!("made above"),
    }
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let lines = frame::frames(bytes).map(|frame| frame.and_then(|(frame, len)| frame::decompress(frame, len)));
    lines.collect::<Result<Vec<_>, _>>().unwrap().concat()
}

fn gunzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).map(|_| plain)
}

/// Slices of one frame, of several, of frames beyond 1 MiB, and of many small ones that are decoded together.
fn slices() -> Vec<Frames> {
    vec![
        vec![lines(1, 10)],
        vec![lines(2, 3), lines(3, 40_000), lines(4, 5)],
        (5..60).map(|seed| lines(seed, 900)).collect(),
        vec![lines(60, 1)],
    ]
}

fn plain(slices: &[Frames]) -> Vec<u8> {
    let rows = vec![slices.len() as u64];
    slices.iter().flatten().flatten().copied().chain(facts().trailer(&rows, None)).collect()
}

#[tokio::test]
async fn all_encodings_hold_the_same_lines() {
    let slices = slices();
    let expected = plain(&slices);
    assert!(whole(Fake::new(&slices), Encoding::Identity).await.unwrap() == expected);
    let zipped = whole(Fake::new(&slices), Encoding::Zstd).await.unwrap();
    assert!(unzip(&zipped) == expected);
    let answer = measured(&Arc::new(Fake::new(&slices)), Encoding::Identity);
    let len = answer.total();
    assert!(gunzip(&collect(gzip(answer.read(0..len, rests()))).await.unwrap()).unwrap() == expected);
}

#[tokio::test]
async fn a_dump_in_progress_gives_the_same_lines_in_all_encodings() {
    let parts = || vec![frames(&lines(1, 10)), frames(&lines(2, 40_000)), Ok(Part::End(vec![40_010]))];
    let expected: Vec<u8> = [lines(1, 10), lines(2, 40_000), facts().trailer(&[40_010], None)].concat();
    assert!(collect(of_live(parts(), Encoding::Identity)).await.unwrap() == expected);
    let zipped = collect(of_live(parts(), Encoding::Zstd)).await.unwrap();
    assert!(unzip(&zipped) == expected);
    let zipped = collect(gzip(of_live(parts(), Encoding::Gzip))).await.unwrap();
    assert!(gunzip(&zipped).unwrap() == expected);
}

#[tokio::test]
async fn nothing_ends_cleanly_but_the_whole() {
    for encoding in [Encoding::Zstd, Encoding::Identity, Encoding::Gzip] {
        let of_live = |parts| match encoding {
            Encoding::Gzip => gzip(of_live(parts, encoding)),
            _ => of_live(parts, encoding),
        };
        let unfinished = collect(of_live(vec![frames(b"{}\n")])).await;
        assert!(matches!(unfinished, Err(BodyError::Unfinished)), "{encoding:?}: {unfinished:?}");
        let failed = collect(of_live(vec![frames(b"{}\n"), Err(broken())])).await;
        assert!(matches!(failed, Err(BodyError::Serve(_))), "{encoding:?}: {failed:?}");
    }
    let small: [Frames; 3] = [vec![lines(1, 10)], vec![lines(2, 20), lines(3, 30)], vec![lines(4, 40)]];
    let new = || Fake::new(&small);
    let other: Bytes = compress(&lines(1, 11)).into();
    let len = new().slices()[0];
    for encoding in [Encoding::Zstd, Encoding::Identity] {
        let failed = whole(new().failing_after(2), encoding).await;
        assert!(matches!(failed, Err(BodyError::Serve(_))), "{encoding:?}: {failed:?}");
        let swapped = whole(new().with_slice(0, other.clone()), encoding).await;
        assert!(matches!(swapped, Err(BodyError::Length)), "{encoding:?}: {swapped:?}");
    }
    // The lengths of a lying manifest are found out before anything is decoded into them.
    for raw_len in [len.raw_len - 1, len.raw_len + 1] {
        let lying = whole(new().with_len(0, SliceLen { raw_len, ..len }), Encoding::Identity).await;
        assert!(matches!(lying, Err(BodyError::Length)), "{lying:?}");
    }
    let mut flipped = compress(&lines(1, 10));
    *flipped.last_mut().unwrap() ^= 1;
    let damaged = whole(new().with_slice(0, flipped.into()), Encoding::Identity).await;
    assert!(matches!(damaged, Err(BodyError::Frame(_))), "{damaged:?}");
}

#[tokio::test]
async fn slices_before_a_range_are_not_read() {
    let fake = Arc::new(Fake::new(&slices()));
    let answer = measured(&fake, Encoding::Zstd);
    let last = answer.total() - answer.trailer().len() as u64 - 1;
    assert_eq!(collect(answer.read(last..last + 1, rests())).await.unwrap().len(), 1);
    assert_eq!(fake.taken.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_exact_body_breaks_when_it_is_short_or_long() {
    use futures_util::future::poll_fn;
    for (given, announced, fits) in [(3, 3, true), (2, 3, false), (4, 3, false)] {
        let bytes = stream::iter([Ok(Bytes::from(vec![0; given]))]).boxed();
        let mut body = Exact::new(bytes, announced);
        assert_eq!(body.size_hint().exact(), Some(announced));
        let mut broke = false;
        while let Some(item) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            broke |= item.is_err();
            if broke {
                break;
            }
        }
        assert_eq!((!broke, body.is_end_stream()), (fits, fits), "{given} of {announced}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_breaks_off_at_its_deadline() {
    let slow = stream::iter(0..3).then(async |_| {
        tokio::time::sleep(Duration::from_secs(4)).await;
        Ok(Bytes::from_static(b"x"))
    });
    let limit = Duration::from_secs(10);
    let mut bytes = until(Instant::now() + limit, limit, slow.boxed());
    assert!(matches!(bytes.next().await, Some(Ok(_))));
    assert!(matches!(bytes.next().await, Some(Ok(_))));
    assert!(matches!(bytes.next().await, Some(Err(BodyError::Deadline(_)))));
    assert!(bytes.next().await.is_none());
}

/// What is in memory is there at once, whenever it is asked for.
#[tokio::test(start_paused = true)]
async fn a_slow_client_of_what_is_there_gets_no_more_than_its_time_either() {
    let limit = Duration::from_secs(10);
    let there = stream::iter((0..3).map(|_| Ok(Bytes::from_static(b"x"))));
    let mut bytes = until(Instant::now() + limit, limit, there.boxed());
    for seconds in [6, 6] {
        assert!(matches!(bytes.next().await, Some(Ok(_))));
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }
    assert!(matches!(bytes.next().await, Some(Err(BodyError::Deadline(_)))));
}

/// Wherever an answer is cut, the parts are the whole.
#[tokio::test]
async fn the_ranges_of_every_cut_are_the_whole() {
    let mut runner = TestRunner::default();
    let shapes = collection::vec(collection::vec(1usize..4, 1..4), 0..4);
    for _ in 0..12 {
        let shape = shapes.new_tree(&mut runner).unwrap().current();
        let slices: Vec<Frames> =
            shape.iter().map(|frames| frames.iter().map(|rows| lines(*rows, *rows)).collect()).collect();
        let fake = Arc::new(Fake::new(&slices));
        for encoding in [Encoding::Zstd, Encoding::Identity] {
            let read = async |range: Range<u64>| collect(measured(&fake, encoding).read(range, rests())).await.unwrap();
            let total = measured(&fake, encoding).total();
            let whole = read(0..total).await;
            for cut in 1..whole.len() {
                let at = cut as u64;
                let (head, tail) = (read(0..at).await, read(at..total).await);
                assert!([head, tail].concat() == whole, "{encoding:?} of {shape:?} cut at {cut}");
                let middle = read(at / 2..at).await;
                assert!(middle == whole[cut / 2..cut], "{encoding:?} of {shape:?} from {} to {cut}", cut / 2);
            }
        }
    }
}
