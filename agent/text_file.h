// Small files: read whole, written so that a power cut leaves either the old content or the new one.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::agent {

// At most `size_max` bytes: these files are ours or the kernel's, anything larger is a mistake.
Result<std::string> read_text_file(const std::filesystem::path& path, std::size_t size_max = 1 << 20);

// The first line of a file of sysfs or procfs, without surrounding blanks; nothing when it is absent or empty.
std::optional<std::string> read_line(const std::filesystem::path& path);

// Writes a temporary file beside it, then renames. When `durable`, both file and directory are synced: the content
// survives a power cut once this returns. Otherwise readers still never see a half.
Status write_file_atomically(const std::filesystem::path& path, std::string_view content, mode_t mode,
                             bool durable = true);

// A text with a last line that holds its SHA-256, and the text without it; nothing, and why not ("cut short", ...),
// when the line is not there or does not fit.
std::string with_checksum(std::string_view text);
std::optional<std::string> without_checksum(std::string_view text, std::string& why);

}  // namespace tidemark::agent
