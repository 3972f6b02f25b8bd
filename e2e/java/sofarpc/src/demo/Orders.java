package demo;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import java.util.concurrent.CountDownLatch;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * An application between two worlds: called by Bolt, it calls the StockService by Dubbo. System properties: app.name, port,
 * label.version (optional) and SOFA's registry as for Provider, and Dubbo's own. It prints READY when its service is registered, and ends on SIGTERM.
 */
public final class Orders {
    private Orders() {
    }

    public static void main(String[] args) throws InterruptedException {
        ReferenceConfig<StockService> reference = new ReferenceConfig<>();
        reference.setInterface(StockService.class);
        DubboBootstrap.getInstance().reference(reference).start();
        StockService stock = reference.get();

        OrderService orders = (symbol, amount) -> {
            if (!stock.reserve(symbol, amount)) {
                throw new IllegalArgumentException("not so many of " + symbol);
            }
            return amount * stock.price(symbol);
        };
        ProviderConfig<OrderService> provider = new ProviderConfig<OrderService>()
                .setApplication(new ApplicationConfig().setAppName(System.getProperty("app.name", "orders")))
                .setInterfaceId(OrderService.class.getName())
                .setRef(orders)
                .setServer(new ServerConfig().setProtocol("bolt").setPort(Integer.getInteger("port", 12200)).setDaemon(false))
                .setRegistry(Registry.configured());
        if (System.getProperty("label.version") != null) {
            provider.setParameter("label.version", System.getProperty("label.version"));
        }
        provider.export();
        Runtime.getRuntime().addShutdownHook(new Thread(provider::unExport));
        System.out.println("READY");
        new CountDownLatch(1).await();
    }
}
