#include "server/authority.h"

#include <algorithm>

#include "net/connect.h"
#include "server/directory.h"
#include "server/private_file.h"

namespace tidemark::server {
namespace {

Status save(const std::string& stem, const net::KeyAndCertificate& pair) {
  TIDEMARK_TRY(write_private_file(stem + ".key", pair.key_pem));
  return write_private_file(stem + ".pem", pair.certificate_pem);
}

Result<net::KeyAndCertificate> load_pair(const std::string& stem) {
  net::KeyAndCertificate pair;
  pair.key_pem = TIDEMARK_TRY(read_private_file(stem + ".key"));
  pair.certificate_pem = TIDEMARK_TRY(read_private_file(stem + ".pem"));
  return pair;
}

}  // namespace

std::vector<std::string> certificate_names(const std::vector<std::string>& addresses) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const auto& address : addresses)
    if (const auto parsed = net::parse_host_port(address)) add(parsed->host);
  add(host_name());
  add("localhost");
  add("127.0.0.1");
  add("::1");
  return names;
}

Status Authority::create(const std::string& directory, const Superblock& superblock, const Clock& clock) {
  const auto ca = TIDEMARK_TRY(net::make_authority("Tidemark " + superblock.name, clock.wall_us()));
  TIDEMARK_TRY(save(directory + "/ca", ca));
  return renew_server(directory, superblock, clock);
}

Status Authority::renew_server(const std::string& directory, const Superblock& superblock, const Clock& clock) {
  const auto ca = TIDEMARK_TRY(load_pair(directory + "/ca"));
  const auto server = TIDEMARK_TRY(net::issue_server(ca, certificate_names(superblock.addresses), clock.wall_us()));
  return save(directory + "/server", server);
}

Result<Authority> Authority::load(const std::string& directory) {
  Authority authority;
  authority.ca_ = TIDEMARK_TRY(load_pair(directory + "/ca"));
  authority.server_ = TIDEMARK_TRY(load_pair(directory + "/server"));
  authority.ca_info_ = TIDEMARK_TRY(net::describe_certificate(authority.ca_.certificate_pem));
  authority.server_info_ = TIDEMARK_TRY(net::describe_certificate(authority.server_.certificate_pem));
  return authority;
}

net::Credentials Authority::server_credentials() const {
  return {.certificate_pem = server_.certificate_pem, .key_pem = server_.key_pem, .ca_pem = ca_.certificate_pem};
}

Result<Authority::Issued> Authority::issue_machine(const std::string& csr_pem, const MachineId& machine,
                                                   WallMicros now_us) const {
  Issued issued;
  issued.certificate_pem = TIDEMARK_TRY(net::issue_machine(ca_, csr_pem, machine, now_us));
  issued.info = TIDEMARK_TRY(net::describe_certificate(issued.certificate_pem));
  return issued;
}

}  // namespace tidemark::server
