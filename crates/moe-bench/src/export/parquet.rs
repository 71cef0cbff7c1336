//! Measures as one Parquet row group without compression: a comparison has thousands of lines.

use super::Measured;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::Result;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

const SCHEMA: &str = "message results {
    required binary router (STRING);
    required int64 seed (INTEGER(64, false));
    required binary measure (STRING);
    required double value;
}";

/// The bytes of a file.
///
/// # Errors
/// What the library says.
pub(super) fn encode(measured: &[Measured<'_>]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default())?;
    let mut rows = writer.next_row_group()?;
    column::<ByteArrayType>(&mut rows, measured.iter().map(|m| text(m.router)))?;
    // The type has no unsigned form; the schema says that these 64 bits are one.
    column::<Int64Type>(&mut rows, measured.iter().map(|m| m.seed.cast_signed()))?;
    column::<ByteArrayType>(&mut rows, measured.iter().map(|m| text(m.measure)))?;
    column::<DoubleType>(&mut rows, measured.iter().map(|m| m.value))?;
    rows.close()?;
    writer.close()?;
    Ok(bytes)
}

fn text(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}

/// Writes the next column of the schema.
fn column<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: impl Iterator<Item = T::T>,
) -> Result<()> {
    let mut column = rows.next_column()?.expect("the schema has as many columns as are written");
    column.typed::<T>().write_batch(&values.collect::<Vec<_>>(), None, None)?;
    column.close()
}

/// The lines of a file, for tests.
#[cfg(test)]
pub(super) fn decode(bytes: Vec<u8>) -> Vec<(String, u64, String, f64)> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows = reader.get_row_iter(None).unwrap().map(|row| {
        let row = row.unwrap();
        let text = |column| row.get_string(column).unwrap().clone();
        (text(0), row.get_ulong(1).unwrap(), text(2), row.get_double(3).unwrap())
    });
    rows.collect()
}
