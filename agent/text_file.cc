#include "agent/text_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "agent/file_descriptor.h"
#include "base/crypto.h"
#include "base/hex.h"

namespace tidemark::agent {
namespace {
constexpr std::string_view kChecksumLine = "\nsha256 ";
}

Result<std::string> read_text_file(const std::filesystem::path& path, std::size_t size_max) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, path.string(), "open");
  std::string text;
  char piece[4096];
  while (true) {
    const ssize_t n = ::read(fd.get(), piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, path.string(), "read");
    if (n == 0) return text;
    text.append(piece, static_cast<std::size_t>(n));
    if (text.size() > size_max) {
      return fail(Code::corrupt, path.string(), "larger than " + std::to_string(size_max) + " bytes",
                  "it is not what belongs here");
    }
  }
}

std::optional<std::string> read_line(const std::filesystem::path& path) {
  const auto text = read_text_file(path);
  if (!text) return std::nullopt;
  const std::string line = text->substr(0, text->find('\n'));
  const auto begin = line.find_first_not_of(" \t");
  if (begin == std::string::npos) return std::nullopt;
  return line.substr(begin, line.find_last_not_of(" \t") - begin + 1);
}

Status write_file_atomically(const std::filesystem::path& path, std::string_view content, mode_t mode, bool durable) {
  std::filesystem::path temporary = path;
  temporary += ".new";
  // What an earlier crash left there may have other permissions: never write a key into it.
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, temporary.string(), "remove");
  FileDescriptor fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd) return fail_errno(errno, temporary.string(), "create");
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t n = ::write(fd.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, temporary.string(), "write");
    done += static_cast<std::size_t>(n);
  }
  if (durable && ::fsync(fd.get()) != 0) return fail_errno(errno, temporary.string(), "sync");
  fd.reset();
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    return fail_errno(errno, path.string(), "rename the new content to");
  if (!durable) return {};
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const FileDescriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail_errno(errno, folder.string(), "open");
  if (::fsync(directory.get()) != 0) return fail_errno(errno, folder.string(), "sync");
  return {};
}

std::string with_checksum(std::string_view text) {
  return std::string(text).append(kChecksumLine).append(to_hex(sha256(text))) + "\n";
}

std::optional<std::string> without_checksum(std::string_view text, std::string& why) {
  const std::size_t end = text.rfind(kChecksumLine);
  if (end == std::string_view::npos) {
    why = "cut short";
    return std::nullopt;
  }
  std::string body(text.substr(0, end));
  if (with_checksum(body) == text) return body;
  why = "its checksum does not fit";
  return std::nullopt;
}

}  // namespace tidemark::agent
