#include "agent/state_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <charconv>

#include "agent/text_file.h"
#include "net/certificates.h"

namespace tidemark::agent {
namespace {

constexpr char kEnroll[] = "enrol this machine: tidemark-agent enroll --token T";
constexpr char kEnrollAgain[] =
    "enrol again with a token made for this machine: tidemark-agent enroll --replace --token T";

std::filesystem::path lock_path(const StateDir& dir) { return dir.path() / "lock"; }

Result<std::string> read_credential(const std::filesystem::path& path) {
  auto text = read_text_file(path);
  if (!text) {
    text.error().remedy = text.error().code == Code::not_found
                              ? kEnrollAgain
                              : "run as the user who owns the state directory, or as root";
    return text;
  }
  if (text->find("-----BEGIN ") == std::string::npos) {
    return fail(Code::corrupt, path.string(), "it is damaged: no PEM text in it", kEnrollAgain);
  }
  return text;
}

}  // namespace

Status StateDir::create() const {
  std::error_code error;
  std::filesystem::create_directories(path_.parent_path(), error);
  if (::mkdir(path_.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(errno, path_.string(), "make the state directory");
  if (!std::filesystem::is_directory(path_, error)) {
    return fail(Code::invalid_argument, path_.string(), "is no directory", "name another with --state-dir");
  }
  return {};
}

bool StateDir::enrolled() const {
  std::error_code error;
  return std::filesystem::exists(certificate(), error) || std::filesystem::exists(key(), error);
}

Result<net::Credentials> StateDir::credentials() const {
  if (!enrolled()) return fail(Code::not_found, path_.string(), "this machine is not enrolled", kEnroll);
  net::Credentials credentials;
  credentials.key_pem = TIDEMARK_TRY(read_credential(key()));
  credentials.certificate_pem = TIDEMARK_TRY(read_credential(certificate()));
  credentials.ca_pem = TIDEMARK_TRY(read_credential(ca()));
  return credentials;
}

Result<MachineId> StateDir::machine() const {
  const net::Credentials held = TIDEMARK_TRY(credentials());
  auto info = net::describe_certificate(held.certificate_pem);
  if (!info) return fail(Code::corrupt, certificate().string(), "it is damaged: " + info.error().what, kEnrollAgain);
  if (info->machine.is_nil()) return fail(Code::corrupt, certificate().string(), "it names no machine", kEnrollAgain);
  return info->machine;
}

Result<StateLock> StateLock::take(const StateDir& dir) {
  FileDescriptor fd(::open(lock_path(dir).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail_errno(errno, lock_path(dir).string(), "open");
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(errno, lock_path(dir).string(), "lock");
    const std::string pid = read_line(lock_path(dir)).value_or("");
    return fail(Code::busy, dir.path().string(),
                "in use by another tidemark-agent" + (pid.empty() ? "" : " (process " + pid + ")"),
                "stop it first, or use another --state-dir");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0) {
    return fail_errno(errno, lock_path(dir).string(), "write");
  }
  return StateLock(std::move(fd));
}

pid_t StateLock::holder(const StateDir& dir) {
  const std::string text = read_line(lock_path(dir)).value_or("");
  pid_t pid = 0;
  std::from_chars(text.data(), text.data() + text.size(), pid);
  return pid;
}

bool StateLock::held(const StateDir& dir) {
  const FileDescriptor fd(::open(lock_path(dir).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return false;
  // Shared and only for a moment: it does not turn away a process that takes the lock for itself, except just then.
  if (::flock(fd.get(), LOCK_SH | LOCK_NB) != 0) return errno == EWOULDBLOCK;
  return false;
}

}  // namespace tidemark::agent
