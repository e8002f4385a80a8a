//! Reading messages back: their records and their content.

use std::io;
use std::sync::Arc;

use crate::change;
use crate::codec;
use crate::content::{ContentReader, Source};
use crate::error::LoadError;
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::{Entry, Place};
use crate::item::Item;
use crate::record::{HEADER_OCTETS, Header, Kind, segment_name};

/// Opens the file of a segment.
pub(crate) type OpenSegment<'a> = &'a dyn Fn(u32) -> io::Result<Arc<dyn FsFile>>;
/// Reads of a segment from an offset until the buffer is full or the segment ends; returns how much.
pub(crate) type ReadSegment<'a> = &'a SegmentReader<'a>;
/// What does that.
pub(crate) type SegmentReader<'a> = dyn Fn(u32, u64, &mut [u8]) -> io::Result<usize> + 'a;

/// Reads a message's records: the message with its first state, then the newest state and what has
/// changed since.
pub(crate) fn read_item(id: QueueId, entry: &Entry, read: ReadSegment<'_>) -> Result<Item, LoadError> {
    let mut record = Vec::new();
    read_meta(id, entry.message, entry.meta_octets, Kind::Message, read, &mut record)?;
    item(id, entry, &record[HEADER_OCTETS..], read)
}

/// Reads a message as [`read_item`] does if its metadata `is_meant`. `record` is written over: whoever reads
/// very many lends the same one each time.
pub(crate) fn read_item_if(
    id: QueueId,
    entry: &Entry,
    read: ReadSegment<'_>,
    is_meant: impl FnOnce(&[u8]) -> bool,
    record: &mut Vec<u8>,
) -> Result<Option<Item>, LoadError> {
    read_meta(id, entry.message, entry.meta_octets, Kind::Message, read, record)?;
    let meta = &record[HEADER_OCTETS..];
    if is_meant(meta) { item(id, entry, meta, read).map(Some) } else { Ok(None) }
}

/// Makes a message of the metadata of its Message record and of what its other records say.
fn item(id: QueueId, entry: &Entry, meta: &[u8], read: ReadSegment<'_>) -> Result<Item, LoadError> {
    let damaged = |at: Place, what| LoadError::Damaged { id, place: place(at.segment), what };
    let mut item = codec::decode_item(meta, id, entry.content_octets).map_err(|e| damaged(entry.message, e.0))?;
    let mut record = Vec::new();
    if let Some((at, octets)) = entry.state {
        read_meta(id, at, octets, Kind::State, read, &mut record)?;
        item.state = codec::decode_state(&record[HEADER_OCTETS..]).map_err(|e| damaged(at, e.0))?;
        if item.state.recipients.len() != item.envelope.recipients().len() {
            return Err(damaged(at, "its state is of another number of recipients"));
        }
    }
    for (at, octets) in &entry.changes {
        read_meta(id, *at, *octets, Kind::Change, read, &mut record)?;
        change::apply(&mut item.state, &record[HEADER_OCTETS..]).map_err(|e| damaged(*at, e.0))?;
    }
    Ok(item)
}

fn place(number: u32) -> String {
    format!("log/{}", segment_name(number))
}

/// Reads a record's header and metadata into `record`.
fn read_meta(
    id: QueueId,
    at: Place,
    octets: u32,
    kind: Kind,
    read: ReadSegment<'_>,
    record: &mut Vec<u8>,
) -> Result<(), LoadError> {
    record.resize(HEADER_OCTETS + octets as usize, 0);
    let failed = |source| LoadError::Io { id, place: place(at.segment), source };
    let n = read(at.segment, at.offset(), record).map_err(failed)?;
    let header = Header::decode(&record[..n]).filter(|h| (h.kind, h.id, h.meta_octets) == (kind, id, octets));
    let sound = header.is_some_and(|h| record.len() == n && crc32fast::hash(&record[HEADER_OCTETS..]) == h.meta_crc);
    let what = "its record fails the checksum";
    if sound { Ok(()) } else { Err(LoadError::Damaged { id, place: place(at.segment), what }) }
}

/// Opens the content of a message, wherever it lies.
pub(crate) fn open_content(
    fs: &dyn Fs,
    id: QueueId,
    entry: &Entry,
    open: OpenSegment<'_>,
) -> Result<ContentReader, LoadError> {
    // Its header has the checksum of the content.
    let crc = read_header(id, entry.message, &from(open))?.content_crc;
    let (place, file, start) = if entry.spilled {
        let name = id.to_string();
        (format!("content/{name}"), fs.open(Dir::Content, &name, Access::Read), 0)
    } else {
        let start = entry.message.offset() + HEADER_OCTETS as u64 + u64::from(entry.meta_octets);
        (place(entry.message.segment), open(entry.message.segment), start)
    };
    match file {
        Ok(file) => {
            let source = Source::File { file, start, place };
            Ok(ContentReader::new(id, entry.content_octets, crc, source))
        }
        Err(source) => Err(LoadError::Io { id, place, source }),
    }
}

/// Reads the header of a Message record.
pub(crate) fn read_header(id: QueueId, at: Place, read: ReadSegment<'_>) -> Result<Header, LoadError> {
    let failed = |source| LoadError::Io { id, place: place(at.segment), source };
    let mut octets = [0; HEADER_OCTETS];
    let n = read(at.segment, at.offset(), &mut octets).map_err(failed)?;
    let header = Header::decode(&octets[..n]).filter(|h| (h.kind, h.id) == (Kind::Message, id));
    header.ok_or(LoadError::Damaged { id, place: place(at.segment), what: "its record fails the checksum" })
}

/// Reads segments as they are opened.
pub(crate) fn from(open: OpenSegment<'_>) -> impl Fn(u32, u64, &mut [u8]) -> io::Result<usize> {
    move |number, offset, buffer| read_full(&*open(number)?, offset, buffer)
}

/// Reads a content to its end and compares the checksum; returns its octets.
pub(crate) fn read_through(id: QueueId, mut content: ContentReader, buffer: &mut [u8]) -> Result<u64, LoadError> {
    let mut at = 0;
    loop {
        match content.read_at(at, buffer) {
            Ok(0) => return Ok(at),
            Ok(n) => at += n as u64,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let what = "its content fails the checksum";
                return Err(LoadError::Damaged { id, place: content.place().to_owned(), what });
            }
            Err(source) => return Err(LoadError::Io { id, place: content.place().to_owned(), source }),
        }
    }
}
